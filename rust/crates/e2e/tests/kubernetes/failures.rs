//! What kubelet says of images that cannot be had.

use anyhow::{Context, Result, ensure};
use e2e::{
    archive::{archive, image},
    host::{Host, test},
    image::architecture,
    node::{build, reference},
    process::{SETTLE, poll, when},
    snapshots::says,
    store::{Object, Store},
};
use serde_json::json;

use crate::cluster::{Cluster, hello_archive};

/// What a container waits for whose image could not be pulled.
const PULL: &[&str] = &["ErrImagePull", "ImagePullBackOff"];

#[test]
fn why_an_image_cannot_be_had_is_in_the_status_of_the_pod() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let nobodys = "/nix/store/00000000000000000000000000000000-nobody-has-this";
        let store = Store::new(host)?;
        let good = hello_archive(host)?;
        let directory = store.build("directory", "$busybox mkdir $out", &[])?;
        let text = store.build("text", "echo no archive > $out", &[])?;
        let hello = format!("{}/bin/hello", host.fixture("hello")?);
        let foreign = archive(host, "hello", &[&hello], &["--platform", "linux/s390x"])?;
        let here = format!("for linux/{}", architecture());
        let upper = archive_with_upper_case(host)?;
        let pods: [(&str, String, &[&str], &[&str]); 8] = [
            (
                "outside",
                "nix:0/etc/passwd".to_owned(),
                PULL,
                &[
                    "/etc/passwd",
                    "is not a store path",
                    "directly below /nix/store",
                ],
            ),
            (
                "inside",
                format!("{}/bin/hello", image(&good)),
                PULL,
                &[good.path(), "inside a store object"],
            ),
            (
                "directory",
                image(&directory),
                PULL,
                &[
                    directory.path(),
                    "is not an archive of images",
                    "nix2container build",
                ],
            ),
            (
                "text",
                image(&text),
                PULL,
                &[text.path(), "is not a tar archive", "make or copy it again"],
            ),
            (
                "foreign",
                image(&foreign),
                PULL,
                &[foreign.path(), &here, "only for linux/s390x"],
            ),
            (
                "absent",
                format!("nix:0{nobodys}"),
                PULL,
                &["nix-store", nobodys, "don't know how to build these paths"],
            ),
            (
                "contradiction",
                format!("{}:v2", image(&good)),
                PULL,
                &[good.path(), "the tag latest: write that, or none"],
            ),
            (
                "upper",
                image(&upper),
                &["InvalidImageName"],
                &[upper.path(), "must be lowercase"],
            ),
        ];
        for (pod, image, ..) in &pods {
            let container = json!({ "name": "main", "image": image });
            cluster.kubelet.add_pod(pod, &container)?;
        }
        for (pod, _, reasons, words) in &pods {
            let said = cluster.kubelet.waiting(pod, reasons)?;
            says(&said, words).with_context(|| (*pod).to_owned())?;
            says(&cluster.kubelet.log(), words)?;
        }
        for (pod, ..) in &pods {
            cluster.kubelet.remove_pod(pod)?;
        }
        poll("the release of archives", SETTLE, || {
            Ok(when(cluster.held().is_empty()))
        })
        .with_context(|| format!("{:?}", cluster.held()))?;
        let images = cluster.crictl_json("images", &[])?;
        let left = images["images"].as_array().context("no images")?;
        ensure!(left.len() == 1 && left[0]["pinned"] == true, "{images}");
        Ok(())
    });
}

/// An archive whose store path cannot be the name of an image.
fn archive_with_upper_case(host: &Host) -> Result<Object> {
    let hello = format!("{}/bin/hello", host.fixture("hello")?);
    let info = host.fixture("hello-closure-info")?;
    let file = build(host, &reference("upper"), &[&hello], &info, &[])?;
    Store::new(host)?.add(&file, "nix-image-Hello.tar")
}
