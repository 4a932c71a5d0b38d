//! When kubelet has an image pulled: `imagePullPolicy`.

use std::fs;

use anyhow::{Result, ensure};
use e2e::{
    archive::image,
    host::{Host, test},
    observability::command,
    process::succeed,
    snapshots::says,
    store::{Object, Store},
};
use serde_json::{Value, json};

use crate::cluster::{Cluster, redis_archive, redis_command};

fn container(image: &str, policy: &str) -> Value {
    json!({ "name": "main", "image": image, "imagePullPolicy": policy })
}

#[test]
fn an_image_that_is_there_is_pulled_again_where_it_always_is_and_never_imported_again() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let image = image(&redis_archive(host)?);
        let told = |words| {
            let log = cluster.daemon.log();
            log.lines().filter(|line| line.contains(words)).count()
        };
        let mut images = Vec::new();
        for (pod, policy, pulls, found) in [
            ("first", "IfNotPresent", 1.0, 0),
            ("second", "IfNotPresent", 1.0, 0),
            ("third", "Always", 2.0, 1),
            ("fourth", "Never", 2.0, 1),
        ] {
            cluster.kubelet.add_pod(pod, &container(&image, policy))?;
            images.push(cluster.kubelet.running(pod)?.image);
            let had = cluster.pulls()?;
            ensure!(had == pulls, "{pod}: {had} pulls");
            ensure!(told("the image is there already") == found, "{pod}");
            ensure!(told(" imported ") == 1, "{pod}: {}", cluster.daemon.log());
        }
        images.dedup();
        ensure!(images.len() == 1, "{images:?}");
        Ok(())
    });
}

#[test]
fn an_image_that_is_never_pulled_is_preloaded() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let archive = archive_that_names_itself(host)?;
        let image = image(&archive);
        cluster
            .kubelet
            .add_pod("never", &container(&image, "Never"))?;
        let said = cluster.kubelet.waiting("never", &["ErrImageNeverPull"])?;
        says(&said, &[&image, "Never"])?;
        let preload = ["preload", "--namespace", "k8s.io", archive.path()];
        let told = succeed(&mut command(host, cluster.daemon.config(), &preload))?;
        says(&told, &[&image, ": loaded"])?;
        cluster.kubelet.running("never")?;
        ensure!(cluster.pulls()? == 0.0);
        Ok(())
    });
}

/// An archive that is named by the store path that it has, which its builder knows.
fn archive_that_names_itself(host: &Host) -> Result<Object> {
    let config = host.dir().join("config.json");
    let entrypoint = json!({ "Entrypoint": redis_command(host)? });
    fs::write(&config, entrypoint.to_string())?;
    let script = format!(
        "{} build --config {} --closure {} $out",
        host.nix2container().display(),
        config.display(),
        host.fixture("redis-closure-info")?,
    );
    Store::new(host)?.build("nix-image-redis.tar", &script, &[])
}
