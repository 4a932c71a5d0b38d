//! The behaviour that containerd asks of a snapshotter, as tests for any of them.
//!
//! containerd's own suite (`core/snapshots/testsuite`, 1.7 to 2.4) has 21 tests.
//! [`metadata`] and [`content`] have the same ones under the same names, and [`codes`]
//! what its reference implementation answers call by call.
//! [`conformance_suite`](crate::conformance_suite) and
//! [`codes_suite`](crate::codes_suite) make one test of each, for a target that a function starts.
//!
//! The targets of this project are in [`targets`]. One of them is containerd's own
//! overlayfs snapshotter, so that a check that asks for anything else than what containerd does
//! fails there.

pub mod codes;
pub mod content;
pub mod metadata;
pub mod targets;
mod tree;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tonic::Status;

use crate::{
    host::Host,
    mounting::Mounted,
    snapshots::{Info, Kind, Mount, Snapshots},
};
use tree::equal;

/// What keeps containerd's garbage collector away from a snapshot.
pub const GC_ROOT: (&str, &str) = ("containerd.io/gc.root", "conformance");

/// A running snapshotter without snapshots, which ends with this value.
pub trait Target {
    /// A client on a connection of its own.
    ///
    /// # Errors
    /// It cannot connect.
    fn connect(&self) -> Result<Snapshots>;
}

/// Starts a target for one test.
pub type Factory = fn(&Host) -> Result<Box<dyn Target>>;

/// Starts a target and checks one thing of it.
///
/// # Errors
/// Names what is not as containerd has it.
pub fn run(host: &Host, factory: Factory, check: fn(&Subject) -> Result<()>) -> Result<()> {
    let target = factory(host)?;
    check(&Subject {
        snapshots: target.connect()?,
        target: &*target,
        work: host.dir().join("work"),
    })
}

/// The snapshotter that is checked, and a directory for the check to work in.
pub struct Subject<'a> {
    snapshots: Snapshots,
    target: &'a dyn Target,
    work: PathBuf,
}

impl Subject<'_> {
    /// A key as containerd's suite has them, an absolute path.
    fn key(&self, name: &str) -> String {
        self.work.join(name).display().to_string()
    }

    fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.snapshots.prepare(key, parent, &[GC_ROOT])
    }

    fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.snapshots.view(key, parent, &[GC_ROOT])
    }

    fn commit(&self, name: &str, key: &str) -> Result<(), Status> {
        self.snapshots.commit(name, key, &[GC_ROOT])
    }

    /// Makes a committed snapshot without content.
    fn empty_layer(&self, name: &str, parent: &str) -> Result<(), Status> {
        self.snapshots.layer(name, parent, &[GC_ROOT])
    }

    /// Makes a committed snapshot with what `edit` does to its parent.
    fn layer(&self, name: &str, parent: &str, edit: Edit) -> Result<()> {
        let key = format!("{name}-prepare");
        let mounted = self.mount(&self.prepare(&key, parent)?)?;
        edit(mounted.dir()).with_context(|| format!("cannot edit {name}"))?;
        mounted.unmount()?;
        Ok(self.commit(name, &key)?)
    }

    /// Mounts in the working directory.
    fn mount(&self, mounts: &[Mount]) -> Result<Mounted> {
        Mounted::new(&self.work.join("mounted"), mounts)
    }

    /// Checks that a view of a snapshot shows the same as a directory.
    fn shows(&self, name: &str, expected: &Path) -> Result<()> {
        let view = format!("{name}-view");
        let mounted = self.mount(&self.view(&view, name)?)?;
        equal(expected, mounted.dir()).with_context(|| format!("in a view of {name}"))?;
        mounted.unmount()?;
        Ok(self.snapshots.remove(&view)?)
    }

    /// Makes a chain of snapshots by edits, and checks after each that a view shows what the same
    /// edits make of a plain directory.
    fn chain(&self, edits: &[Edit]) -> Result<()> {
        let flat = tempfile::tempdir_in(self.work_dir()?)?;
        let mut parent = String::new();
        for (index, edit) in edits.iter().enumerate() {
            let name = format!("{}-{index}", flat.path().display());
            self.layer(&name, &parent, *edit)?;
            edit(flat.path())?;
            self.shows(&name, flat.path())?;
            parent = name;
        }
        Ok(())
    }

    fn work_dir(&self) -> Result<&Path> {
        std::fs::create_dir_all(&self.work)?;
        Ok(&self.work)
    }

    /// Checks what is known of a snapshot, and gives it.
    fn is(&self, name: &str, kind: Kind, parent: &str) -> Result<Info> {
        let info = self.snapshots.stat(name)?;
        ensure!(
            info.name == name && info.kind == kind as i32 && info.parent == parent,
            "{name} is no {kind:?} on {parent:?} but {info:?}"
        );
        Ok(info)
    }
}

/// What is done to the files of a layer.
type Edit<'a> = &'a dyn Fn(&Path) -> Result<()>;

/// Makes a module with a test for each of containerd's 21, on the target that a
/// [`Factory`] starts.
#[macro_export]
macro_rules! conformance_suite {
    ($name:ident, $factory:expr) => {
        mod $name {
            $crate::conformance_suite!(
                @tests $factory, metadata:
                stat_active stat_committed transitivity prepare_view_failing update remove walk
                remove_intermediate_snapshot stat_in_walk close_twice
            );
            $crate::conformance_suite!(
                @tests $factory, content:
                basic layer_file_update remove_directory_in_lower_layer chown
                directory_permission_on_commit deleted_files_in_child_snapshot
                move_file_from_lower_layer view_readonly root_permission rename
                mount_128_layers
            );
        }
    };
    (@tests $factory:expr, $module:ident: $($check:ident)*) => {
        $(
            #[test]
            fn $check() {
                $crate::host::test(|host| {
                    $crate::conformance::run(host, $factory, $crate::conformance::$module::$check)
                });
            }
        )*
    };
}

/// Makes a module with a test for each call of the Snapshots service, on the target that a
/// [`Factory`] starts.
#[macro_export]
macro_rules! codes_suite {
    ($name:ident, $factory:expr) => {
        mod $name {
            $crate::conformance_suite!(
                @tests $factory, codes:
                prepare view mounts mounts_of_each_kind commit remove stat update list usage
            );
        }
    };
}
