//! What is the daemon's own in its Snapshots service; what containerd asks of any is in `conformance`
//! and `contract`.

use anyhow::ensure;
use e2e::{
    daemon::{Config, Daemon},
    host::test,
};

#[test]
fn sync_remove_deletes_at_once() {
    test(|host| {
        let daemon = Daemon::start(&Config::new(host, "daemon").line("sync_remove = true"))?;
        let snapshots = daemon.snapshots()?;
        let empty = daemon.config().kept()?;
        snapshots.prepare("active", "", &[])?;
        ensure!(daemon.config().kept()?.snapshots != empty.snapshots);
        snapshots.remove("active")?;
        ensure!(daemon.config().kept()?.snapshots == empty.snapshots);
        Ok(())
    });
}

#[test]
fn everything_survives_being_killed() {
    test(|host| {
        let mut daemon = Daemon::start(&Config::new(host, "daemon"))?;
        let snapshots = daemon.snapshots()?;
        snapshots.layer("base", "", &[("l", "1")])?;
        snapshots.layer("top", "base", &[])?;
        snapshots.prepare("active", "top", &[("l", "2")])?;
        snapshots.view("view", "base", &[])?;
        let (rows, kept) = (snapshots.list(&[])?, daemon.config().kept()?);
        let mounts = snapshots.mounts("active")?;
        daemon.kill()?;
        daemon.start_again()?;
        let snapshots = daemon.snapshots()?;
        ensure!(snapshots.list(&[])? == rows);
        ensure!(snapshots.mounts("active")? == mounts);
        ensure!(daemon.config().kept()?.snapshots == kept.snapshots);
        Ok(())
    });
}
