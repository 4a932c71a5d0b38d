//! What goes on to containerd.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::{
    containerd::Config,
    host::test,
    node::{BUSYBOX, build, busybox_image},
    process::succeed,
    registry::{Registry, Settings},
    snapshots::says,
};
use tonic::Code;

use super::{Cluster, archive, image};
use crate::push::push;

#[test]
fn without_containerd_callers_hear_so_at_once_and_afterwards_all_is_well() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let archive = archive(host, &[])?;
        cluster.node.containerd.stop();
        let begun = Instant::now();
        let status = cluster
            .images
            .pull(&image(&archive))
            .err()
            .context("a pull")?;
        ensure!(status.code() == Code::Unavailable, "{status:?}");
        let status = cluster
            .images
            .pull("docker.io/library/a")
            .err()
            .context("a pull")?;
        ensure!(status.code() == Code::Unavailable, "{status:?}");
        says(
            status.message(),
            &["containerd cannot be reached", "containerd_address"],
        )?;
        ensure!(
            begun.elapsed() < Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
        ensure!(cluster.held()?.is_empty());
        cluster.node.containerd.restart()?;
        cluster.images.wait()?;
        cluster.images.pull(&image(&archive))?;
        Ok(())
    });
}

#[test]
fn calls_that_are_not_ours_are_those_of_containerd() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let (ours, theirs) = (&cluster.images, &cluster.node.cri);
        ensure!(ours.images()? == theirs.images()?);
        ensure!(ours.image_filesystems()? == theirs.image_filesystems()?);
        for image in cluster.node.cri.images()? {
            ensure!(ours.image_id(&image)? == theirs.image_id(&image)?);
        }
        // What containerd refuses it refuses in the same words.
        let image = "127.0.0.1:1/a:v1";
        let (said, expected) = (ours.pull(image).err(), theirs.pull(image).err());
        let (said, expected) = (said.context("a pull")?, expected.context("a pull")?);
        ensure!(said.code() == expected.code(), "{said:?} {expected:?}");
        ensure!(
            said.message() == expected.message(),
            "{said:?} {expected:?}"
        );
        // So it does what no version of the CRI has.
        let said = ours.call("NoSuchMethod").err().context("an answer")?;
        let expected = theirs.call("NoSuchMethod").err().context("an answer")?;
        ensure!(said.code() == Code::Unimplemented, "{said:?}");
        ensure!(
            said.message() == expected.message(),
            "{said:?} {expected:?}"
        );
        Ok(())
    });
}

#[test]
fn images_of_a_registry_are_pulled_with_their_store_paths_and_without() {
    test(|host| {
        for format in Config::formats()? {
            let cluster =
                Cluster::start_with(host, |daemon| daemon, |config| config.format(format))?;
            let registry = Registry::start(host, Settings::default())?;
            let hello = format!("{}/bin/hello", host.fixture("hello")?);
            let info = host.fixture("hello-closure-info")?;
            let closure = format!("{}/closure:v1", registry.address());
            let per_path = format!("{}/per-path:v1", registry.address());
            let ordinary = format!("{}/ordinary:v1", registry.address());
            let flags = ["--annotations", "per-path"];
            for (image, archive, command) in [
                (
                    &closure,
                    build(host, &closure, &[&hello], &info, &[])?,
                    &[&*hello][..],
                ),
                (
                    &per_path,
                    build(host, &per_path, &[&hello], &info, &flags)?,
                    &[&hello],
                ),
                (
                    &ordinary,
                    busybox_image(host, &ordinary, [])?,
                    &[BUSYBOX, "true"],
                ),
            ] {
                succeed(push(host).arg(&archive))?;
                let id = cluster.images.pull(image)?;
                let pod = cluster.node.cri.run_pod()?;
                let container = pod.create_container(&id, command, &[])?;
                pod.run_container(&container)?;
                pod.remove()?;
                cluster.images.remove_image(&id)?;
            }
            cluster.keeps_nothing()?;
        }
        Ok(())
    });
}
