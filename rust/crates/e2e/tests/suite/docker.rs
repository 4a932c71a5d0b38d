//! Docker's engine: it loads what `nix2container` builds, and what it saves is a base image.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::{
    docker::{Docker, ImageStore},
    host::{Host, test, unique},
    image::Layer,
    node::{BUSYBOX, build, busybox_image, reference},
    process::{run, succeed},
};
use serde_json::Value;

/// What the engine tells of an image.
fn inspect(docker: &Docker, image: &str) -> Result<Value> {
    let told = succeed(&mut docker.command(&["image", "inspect", image]))?;
    let told: Value = serde_json::from_str(&told)?;
    Ok(told[0].clone())
}

fn load(docker: &Docker, archive: &Path) -> Result<String> {
    succeed(docker.command(&["load", "--input"]).arg(archive))
}

fn loads_and_runs(host: &Host, images: ImageStore) -> Result<()> {
    let docker = Docker::start(host, images)?;
    let hello = format!("{}/bin/hello", host.fixture("hello")?);
    let info = host.fixture("hello-closure-info")?;
    for (number, flags) in [
        &["--compression", "none"][..],
        &["--compression", "gzip"],
        &["--annotations", "per-path"],
    ]
    .into_iter()
    .enumerate()
    {
        let image = reference(&format!("docker-{number}"));
        let flags = [flags, &["--label", "from=nix", "--base-layout"]].concat();
        let archive = build(host, &image, &[&hello], &info, &flags)?;
        let told = load(&docker, &archive)?;
        let tag = image.rsplit('/').next().unwrap_or_default();
        ensure!(told.contains(tag), "{flags:?}: {told}");
        let told = inspect(&docker, &image)?;
        let config = &told["Config"];
        ensure!(config["Entrypoint"][0] == *hello, "{flags:?}: {told:#}");
        ensure!(config["Labels"]["from"] == "nix", "{flags:?}: {told:#}");

        // The engine mounts no store paths: they are not in the image, and have to be given.
        let mut container = docker.command(&["run", "--rm", "--network=none"]);
        let ended = run(container.arg(&image))?;
        let said = ended.failure()?;
        ensure!(said.contains("no such file"), "{flags:?}: {said}");
        let mut container = docker.command(&["run", "--rm", "--network=none"]);
        container.args(["--volume", "/nix/store:/nix/store:ro"]);
        let said = succeed(container.arg(&image))?;
        ensure!(said.contains("Hello, world!"), "{flags:?}: {said}");
    }
    Ok(())
}

fn saves_a_base(host: &Host, images: ImageStore) -> Result<()> {
    let docker = Docker::start(host, images)?;
    let hello = format!("{}/bin/hello", host.fixture("hello")?);
    let info = host.fixture("hello-closure-info")?;
    let layer = Layer::default().file("motd", 0o644, b"from the base")?;
    let ordinary = busybox_image(host, &reference("ordinary"), [layer])?;
    let from = |base: &Path, name: &str| {
        let base = base.to_str().context("a path that is no text")?;
        build(host, name, &[&hello], &info, &["--from-image", base])
    };
    let name = reference("docker-base");
    load(&docker, &from(&ordinary, &name)?)?;
    let saved = host.dir().join(unique("saved"));
    let mut save = docker.command(&["save", &name, "--output"]);
    succeed(save.arg(&saved))?;

    let built = reference("docker-built");
    load(&docker, &from(&saved, &built)?)?;
    for (words, expected) in [
        (&[BUSYBOX, "cat", "/motd"][..], "from the base"),
        (&[&*hello], "Hello, world!"),
    ] {
        let mut container = docker.command(&["run", "--rm", "--network=none"]);
        container.args(["--volume", "/nix/store:/nix/store:ro"]);
        container.args(["--entrypoint", words[0], &built]);
        let said = succeed(container.args(&words[1..]))?;
        ensure!(said.contains(expected), "{said}");
    }
    Ok(())
}

#[test]
fn docker_loads_images_into_its_graph_driver() {
    test(|host| loads_and_runs(host, ImageStore::GraphDriver));
}

#[test]
fn docker_loads_images_into_its_containerd() {
    test(|host| loads_and_runs(host, ImageStore::Containerd));
}

#[test]
fn an_image_that_docker_saves_from_its_graph_driver_is_a_base() {
    test(|host| saves_a_base(host, ImageStore::GraphDriver));
}

#[test]
fn an_image_that_docker_saves_from_its_containerd_is_a_base() {
    test(|host| saves_a_base(host, ImageStore::Containerd));
}
