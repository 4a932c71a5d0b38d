//! containerd's snapshot model: which snapshots there are, where their layers lie, and how they are
//! mounted.
//!
//! The crate depends on SQLite for the metadata, on rustix for system calls and on nothing else of
//! this workspace. It never learns what a store path is, never speaks gRPC, never mounts anything
//! and never runs a program. All calls block; a [`Snapshotter`] is shared behind an `Arc`.
//!
//! # On the disk
//!
//! ```text
//! <root>/                        0700   one process at a time
//!   lock                         0600   flock, with the pid of the holder
//!   metadata.db                  0600   SQLite: a row a snapshot, the highest id
//!   metadata.db-wal, -shm        0600   its log and the log's index, while the root is open
//!   metadata.changes             0600   the number of the last transaction that is on the disk
//!   metadata.reserve             0600   space for removing snapshots from a disk that is full
//!   probe/                              only while the root is opened
//!   snapshots/                   0700
//!     <id>/                      0700
//!       fs/                      0755   the layer; owned as the parent's layer is, or by the root
//!                                       of the container's user namespace
//!       work/                    0711   of overlayfs; only what was or is active has one
//!   <attachments>/               0700   the caller's, see Options::attachments
//!     <id>/
//! ```
//!
//! A commit changes one row and nothing else on the disk: the id, and with it the directories,
//! stay.
//!
//! # What is made when
//!
//! [`Snapshotter::reserve`] gives an id. The caller fills the attachment directory of this id,
//! which may take as long as it takes. [`Snapshotter::create`] makes the directories, lets the
//! caller put something into the layer, and adds the row in one short transaction.
//! [`Snapshotter::remove`] goes the other way: it deletes the row in one short transaction and the
//! directories once that is on the disk. So a crash can leave directories without a row, never a
//! row without its directories, and [`Snapshotter::open`] deletes what has no row.
//!
//! After a power cut it is the same for a snapshot with an attachment, since its directories are
//! synced (`fsync`) before its row: what the attachment holds is known to nobody else. The
//! directories of any other snapshot are new and empty. Whoever puts something into them and syncs
//! it, as containerd does when it is told to, has the directories on the disk too; who does not
//! cannot rely on more than what containerd's own snapshotter has, which syncs its metadata alone.
//! A snapshot that lost its directories in this way stays, and [`Snapshotter::open`] warns of it.
//! Each of these syncs would wait for the journal of the file system, and with it for whatever
//! others are writing.
//!
//! Directories are made under their final names. A name made up for the time being, and a rename
//! at the end, would add nothing: an id is given once. The next process begins to count above every
//! id that was published or has a directory still, and notes the highest of them in the store
//! before it deletes the last directory that tells of it: what a killed process had started may
//! live on, and put attachments under an id of that process much later.
//!
//! What containerd writes into a layer is not synced here. It has its own switch for that
//! (`image_pull_with_sync_fs`).
//!
//! # What is deleted when
//!
//! containerd removes every snapshot that it does not know and calls [`Snapshotter::cleanup`]
//! afterwards, which deletes the directories whose id is neither in the store nor reserved. Nothing
//! that is mounted inside a directory is ever entered: a directory with a mount in it stays, with a
//! warning, until a later clean-up finds it unmounted.
//!
//! # Who waits for whom
//!
//! Reads see the store as it was when they began and wait for nobody. Write transactions wait for
//! one another; each is a handful of look-ups and one commit, and none spans a directory walk, a
//! deletion or a call of the caller's. Every one is on the disk when it returns, and those that
//! wait for the disk wait together: one sync is for all of them. The set of reserved ids has a mutex of its own, held for one insertion, one removal or one copy.
//!
//! Linux 5.6 or newer is needed, for `openat2`.

mod error;
mod features;
mod filter;
mod id_mapping;
mod layout;
mod lock;
mod model;
mod mount_limits;
mod mounts;
mod options;
mod row;
mod snapshotter;
mod store;
#[cfg(test)]
mod testing;
mod tree;

pub use error::{Code, Error, Result};
pub use features::Features;
pub use id_mapping::{GID_MAPPING_LABEL, IdMapping, UID_MAPPING_LABEL};
pub use layout::{Reservation, sync_directory};
pub use model::{Counts, Id, Ids, Info, Kind, Labels, Snapshot, UPPERDIR_LABEL, Usage};
pub use mounts::Mount;
pub use options::{Options, Overlay, RemapIds};
pub use snapshotter::Snapshotter;
pub use store::StoreWaits;
