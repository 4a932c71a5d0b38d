//! Pulls of images that Nix resolves.

use anyhow::{Context, bail, ensure};
use e2e::{
    containerd::Config,
    host::test,
    node::{BUSYBOX, reference},
    process::{SETTLE, poll, succeed, when},
    snapshots::says,
    store::{self, Store},
};
use tonic::Code;

use super::{Cluster, archive, image};
use crate::load_platforms::{for_two_platforms, other};

#[test]
fn an_image_is_pulled_by_its_store_path_runs_and_goes() {
    test(|host| {
        for format in Config::formats()? {
            let cluster =
                Cluster::start_with(host, |daemon| daemon, |config| config.format(format))?;
            let (cri, containerd) = (&cluster.node.cri, &cluster.node.containerd);
            for flags in [&[][..], &["--annotations", "per-path"]] {
                let archive = archive(host, flags)?;
                let image = image(&archive);
                ensure!(cluster.images.image_id(&image)?.is_none());
                let id = cluster.images.pull(&image)?;
                ensure!(id.starts_with("sha256:"), "{id}");
                // From now on containerd's own CRI has it, by both names.
                for name in [&image, &id] {
                    ensure!(cri.image_id(name)?.as_ref() == Some(&id), "{name}");
                }
                archive.release()?;
                store::collect_garbage()?;
                ensure!(archive.exists(), "the archive was collected");

                let pod = cri.run_pod()?;
                let hello = format!("{}/bin/hello", host.fixture("hello")?);
                let container = pod.create_container(&id, &[&hello], &[])?;
                pod.run_container(&container)?;
                pod.remove()?;

                // Kubelet removes images by their identifiers.
                cluster.images.remove_image(&id)?;
                ensure!(cri.image_id(&image)?.is_none());
                cluster.keeps_nothing()?;
                ensure!(!containerd.images()?.contains(&image));
                store::collect_garbage()?;
                ensure!(!archive.exists(), "the archive is held still");
            }
        }
        Ok(())
    });
}

#[test]
fn pods_that_start_at_once_have_the_image_imported_once() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let archive = archive(host, &[])?;
        let image = image(&archive);
        let realised_by = |method: &str| {
            let (log, method) = (cluster.node.daemon.log(), format!("method={method:?}"));
            let lines = log.lines().filter(|line| line.contains("realised closure"));
            lines.filter(|line| line.contains(&method)).count()
        };
        let before = realised_by("Prepare");
        let pulls = cluster.images.pull_at_once(&[&*image; 10], SETTLE);
        let mut ids = Vec::new();
        for pull in pulls {
            ids.push(pull.context("a pull that does not end")??);
        }
        ids.dedup();
        ensure!(ids.len() == 1, "{ids:?}");
        let log = cluster.node.daemon.log();
        let told = |words: &str| log.lines().filter(|line| line.contains(words)).count();
        ensure!(told("the image is there already") == 9, "{log}");
        // The archive and the layer, and the snapshot has taken what was realised for it.
        ensure!(realised_by("PullImage") >= 2, "{log}");
        ensure!(realised_by("Prepare") == before, "{log}");
        // Pulled again, as `imagePullPolicy: Always` has it.
        ensure!(cluster.images.pull(&image)? == ids[0]);
        // With another name that means the same archive: one image with two names.
        let by_digest = cluster
            .node
            .containerd
            .image_digest(&format!("{image}:latest"))?;
        let digest = by_digest.context("no digest")?;
        ensure!(cluster.images.pull(&format!("{image}@{digest}"))? == ids[0]);
        ensure!(cluster.held()?.len() == 1);
        cluster.images.remove_image(&ids[0])?;
        cluster.keeps_nothing()
    });
}

#[test]
fn what_cannot_be_pulled_is_said_and_leaves_nothing() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let named = archive(host, &[])?;
        let digest = format!("sha256:{}", "0".repeat(64));
        let store = Store::new(host)?;
        let directory = store.build("directory", "$busybox mkdir $out", &[])?;
        let text = store.build("text", "echo no archive > $out", &[])?;
        let foreign = archive(host, &["--platform", "linux/s390x"])?;
        let link = store.build("link", "$busybox ln -s /etc/passwd $out", &[])?;
        let nobodys = "/nix/store/00000000000000000000000000000000-nobody-has-this";
        for (image, code, words) in [
            (
                "nix:0/etc/passwd".to_owned(),
                Code::InvalidArgument,
                &["/nix/store"][..],
            ),
            (
                format!("{}/inside", image(&named)),
                Code::InvalidArgument,
                &["inside"],
            ),
            (
                format!("nix:0{}", directory.path()),
                Code::InvalidArgument,
                &["oci-layout"],
            ),
            (
                format!("nix:0{}", text.path()),
                Code::InvalidArgument,
                &[text.path(), "not a tar archive"],
            ),
            (
                format!("nix:0{}", link.path()),
                Code::InvalidArgument,
                &[link.path(), "/etc/passwd", "not in the store"],
            ),
            (
                format!("nix:0{nobodys}.drv"),
                Code::InvalidArgument,
                &["is a derivation", "name its output"],
            ),
            (image(&foreign), Code::InvalidArgument, &["linux/s390x"]),
            (
                format!("nix:0{nobodys}"),
                Code::FailedPrecondition,
                &[nobodys],
            ),
            (
                format!("{}@{digest}", image(&named)),
                Code::InvalidArgument,
                &["sha256:", "write that"],
            ),
            (
                format!("{}:v2", image(&named)),
                Code::InvalidArgument,
                &["the tag latest"],
            ),
            (
                "nix:0/nix/store/Upper".to_owned(),
                Code::InvalidArgument,
                &["rename"],
            ),
        ] {
            let status = match cluster.images.pull(&image) {
                Ok(id) => bail!("{image} is {id}"),
                Err(status) => status,
            };
            ensure!(status.code() == code, "{image}: {status:?}");
            says(status.message(), words).with_context(|| image.clone())?;
            ensure!(cluster.held()?.is_empty(), "{image}: {:?}", cluster.held());
        }
        cluster.keeps_nothing()?;
        // A link within the store is as good as what it leads to.
        let script = format!("$busybox ln -s {named} $out");
        let alias = store.build("alias", &script, &[&named])?;
        cluster.images.pull(&format!("nix:0{alias}"))?;
        Ok(())
    });
}

#[test]
fn of_an_archive_with_several_platforms_the_one_of_the_node_is_taken() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let file = for_two_platforms(host, &reference("platforms"))?;
        let archive = Store::new(host)?.add(&file, "nix-image-platforms.tar")?;
        let id = cluster.images.pull(&image(&archive))?;
        // The manifest for another machine is another image.
        let (name, containerd) = (reference("elsewhere"), &cluster.node.containerd);
        let platform = format!("linux/{}", other());
        let flags = ["load", "--platform", &platform, "--ref", &name];
        succeed(containerd.nix2container(&flags).arg(archive.path()))?;
        let foreign = containerd.image_digest(&name)?.context("no digest")?;
        // The CRI hears of it and gives it another name.
        let known = || cluster.node.cri.image_id(&name);
        cluster
            .images
            .remove_image(&poll("the image in the CRI", SETTLE, known)?)?;
        let own = containerd.image_digest(&format!("{}:latest", image(&archive)))?;
        let own = own.context("no digest")?;
        ensure!(cluster.images.pull(&format!("{}@{own}", image(&archive)))? == id);
        let pulled = cluster
            .images
            .pull(&format!("{}@{foreign}", image(&archive)));
        let status = pulled.err().context("the image for another machine")?;
        ensure!(status.code() == Code::InvalidArgument, "{status:?}");
        says(status.message(), &[&*foreign, &own, "for this machine"])?;
        let pod = cluster.node.cri.run_pod()?;
        let container = pod.create_container(&id, &[BUSYBOX, "sleep", "1000"], &[])?;
        pod.start_container(&container)?;
        pod.exec(&container, &[BUSYBOX, "true"])?;
        pod.remove()?;
        cluster.images.remove_image(&id)?;
        cluster.keeps_nothing()
    });
}

#[test]
fn an_image_that_is_pinned_stays_so_when_it_is_pulled_again() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let archive = archive(host, &[])?;
        let image = image(&archive);
        cluster.images.pull(&image)?;
        ensure!(!cluster.images.is_pinned(&image)?);
        let name = format!("{image}:latest");
        let pin = ["images", "label", &name, "io.cri-containerd.pinned=pinned"];
        succeed(&mut cluster.node.containerd.ctr(&pin))?;
        poll("the pin", SETTLE, || {
            Ok(when(cluster.images.is_pinned(&image)?))
        })?;
        cluster.images.pull(&image)?;
        ensure!(cluster.images.is_pinned(&image)?);
        Ok(())
    });
}
