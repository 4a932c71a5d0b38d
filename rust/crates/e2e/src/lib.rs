//! Tests against real containerd, runc and Nix; run by `make test` inside the sandbox.
//!
//! The tests are in `tests/suite/`, one subject a file, those of `make test-kubernetes` in
//! `tests/kubernetes/`, and the program of `make bench` in `src/bin/bench.rs`. This library is what they stand on:
//!
//! * [`host`]: what the machine offers, a test's own directory, and the frame of every test.
//! * [`process`]: programs that end with the value that holds them, and bounded waiting.
//! * [`containerd`], [`daemon`]: the two servers, each with files and sockets of its own.
//! * [`snapshots`], [`transfer`]: clients of containerd's services.
//! * [`cri`]: a client of the CRI, as kubelet is one.
//! * [`mounting`]: mounts of snapshots, as containerd makes them.
//! * [`conformance`]: what containerd asks of a snapshotter, for any of them.
//! * [`observability`]: metrics, health, and the commands that ask a daemon or about it.
//! * [`store`]: store objects of the tests' own, built by Nix.
//! * [`closure`]: a closure that containers can run, in both annotation formats.
//! * [`cache`], [`nix_daemon`]: where Nix gets them from, and the Nix that serves many users.
//! * [`registry`]: Debian's registry, with logins and certificates, and registries that fail.
//! * [`archive`]: archives of images in the store.
//! * [`image`]: images written by hand, so that `nix-image` is not its own witness.
//! * [`measure`]: what `make bench` measures.
//! * [`worker`]: a client of a daemon that is killed under it.
//! * [`invariants`]: what holds of a daemon at rest, whatever has happened to it before.
//! * [`node`]: the two servers together, and the images that tests run on them.
//!
//! It depends on no other crate of the workspace: it knows the programs by their
//! paths, their sockets and their files only. Nothing here stands in for containerd
//! or Nix. Every value that starts a process, makes a mount or a GC root undoes that
//! when it is dropped, after a failed test too.

pub mod archive;
pub mod cache;
pub mod closure;
pub mod conformance;
pub mod containerd;
pub mod cri;
pub mod daemon;
pub mod docker;
pub mod host;
mod http_server;
pub mod image;
pub mod invariants;
pub mod measure;
pub mod mounting;
pub mod nix_daemon;
pub mod node;
pub mod observability;
pub mod process;
pub mod registry;
mod runtime;
pub mod snapshots;
pub mod store;
pub mod transfer;
pub mod worker;
