//! `nix2container inspect` and `diff` of images in a registry, Debian's `docker-registry`.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Result, ensure};
use e2e::{
    host::{Host, test},
    node::build,
    process::{run, succeed},
    registry::{
        Answering, Certificate, FirstTokens, Registry, Settings, TokenServer, auth_file, status,
    },
    snapshots::says,
};
use serde_json::{Value, json};

use crate::push::{LOGIN, at, nix2container, push, small};

/// A file with the login for a registry.
fn logged_in(host: &Host, address: SocketAddr) -> Result<PathBuf> {
    let login = json!({ "username": LOGIN.0, "password": LOGIN.1 });
    auth_file(host.dir(), &address.to_string(), &login)
}

fn inspect(host: &Host, what: &str) -> Result<Value> {
    let text = succeed(&mut nix2container(host, &["inspect", "--json", what]))?;
    Ok(serde_json::from_str(&text)?)
}

#[test]
fn an_archive_and_the_image_in_a_registry_are_told_alike() {
    test(|host| {
        let registry = Registry::start(host, Settings::default())?;
        let name = at(registry.address());
        let hello = format!("{}/bin/hello", host.fixture("hello")?);
        let info = host.fixture("hello-closure-info")?;
        for flags in [&[][..], &["--annotations", "per-path"]] {
            let archive = build(host, &name, &[&hello], &info, flags)?;
            let pushed = succeed(push(host).arg(&archive))?;
            let of_archive = inspect(host, &archive.to_string_lossy())?;
            let of_registry = inspect(host, &format!("docker://{name}"))?;
            ensure!(
                of_registry["images"] == of_archive["images"],
                "{of_registry:#} {of_archive:#}"
            );
            ensure!(of_registry["source"] == *name, "{of_registry:#}");
            let by_digest = inspect(host, &format!("docker://{}", pushed.trim_end()))?;
            ensure!(
                by_digest["images"][0]["digest"] == of_archive["images"][0]["digest"],
                "{by_digest:#}"
            );
        }
        // Neither asks for a layer.
        ensure!(registry.requests("GET /v2/a/manifests") > 0);
        let layers = registry.requests("GET /v2/a/blobs");
        let configs = 4;
        ensure!(layers == configs, "{layers} blobs were read");
        Ok(())
    });
}

#[test]
fn a_difference_is_told_between_an_archive_and_an_image_in_a_registry() {
    test(|host| {
        let registry = Registry::start(host, Settings::default())?;
        let name = at(registry.address());
        let hello = format!("{}/bin/hello", host.fixture("hello")?);
        let info = host.fixture("hello-closure-info")?;
        let before = build(host, &name, &[&hello], &info, &[])?;
        succeed(push(host).arg(&before))?;
        let after = build(host, &name, &[&hello], &info, &["--label", "new=label"])?;
        let after = after.to_string_lossy();
        let what = format!("docker://{name}");
        let text = succeed(&mut nix2container(host, &["diff", &what, &after]))?;
        says(&text, &["new"])?;
        let json = succeed(&mut nix2container(host, &["diff", "--json", &what, &what]))?;
        let json: Value = serde_json::from_str(&json)?;
        ensure!(json["a"] == json["b"], "{json:#}");
        ensure!(json["a"]["source"] == *name, "{json:#}");
        Ok(())
    });
}

#[test]
fn each_platform_of_an_index_is_told() {
    test(|host| {
        let registry = Registry::start(host, Settings::default())?;
        let name = at(registry.address());
        let hello = host.fixture("hello")?;
        let mut pushing = push(host);
        for architecture in ["amd64", "arm64"] {
            let platform = format!("linux/{architecture}");
            let flags = ["--platform", &*platform];
            let info = host.fixture("hello-closure-info")?;
            pushing.arg(build(host, &name, &[&hello], &info, &flags)?);
        }
        succeed(&mut pushing)?;
        let told = inspect(host, &format!("docker://{name}"))?;
        let images = told["images"].as_array().map(Vec::as_slice);
        let platforms: Vec<_> = images
            .unwrap_or_default()
            .iter()
            .map(|image| &image["platform"])
            .collect();
        ensure!(platforms == ["linux/amd64", "linux/arm64"], "{told:#}");
        ensure!(
            told["images"][0]["index"].is_string(),
            "it is no index: {told:#}"
        );
        Ok(())
    });
}

#[test]
fn a_registry_is_read_with_a_login_and_over_tls() {
    test(|host| {
        let certificate = Certificate::new(host)?;
        let registry = Registry::start(
            host,
            Settings {
                login: Some(LOGIN),
                certificate: Some(&certificate),
                ..Settings::default()
            },
        )?;
        let name = at(registry.address());
        let auth = logged_in(host, registry.address())?;
        let ca = certificate.file();
        let archive = small(host, &name)?;
        let mut pushing = push(host);
        pushing.env("REGISTRY_AUTH_FILE", &auth);
        succeed(pushing.arg("--ca-file").arg(&ca).arg(&archive))?;

        let what = format!("docker://{name}");
        let inspect = || {
            let mut inspect = nix2container(host, &["inspect", &what, "--ca-file"]);
            inspect.arg(&ca);
            inspect
        };
        succeed(inspect().env("REGISTRY_AUTH_FILE", &auth))?;
        let refused = run(&mut inspect())?.failure()?;
        ensure!(refused.lines().count() == 1, "{refused}");
        says(&refused, &["wants a login", "skopeo login"])?;
        let refused = run(&mut nix2container(host, &["inspect", &what]))?.failure()?;
        ensure!(refused.lines().count() == 1, "{refused}");
        says(&refused, &["certificate", "--ca-file"])
    });
}

#[test]
fn no_more_is_asked_of_a_token_server_than_to_read() {
    test(|host| {
        let tokens = TokenServer::start(host, LOGIN, FirstTokens::default())?;
        let registry = Registry::start(
            host,
            Settings {
                tokens: Some(&tokens),
                ..Settings::default()
            },
        )?;
        let name = at(registry.address());
        let auth = logged_in(host, registry.address())?;
        let archive = small(host, &name)?;
        succeed(push(host).env("REGISTRY_AUTH_FILE", &auth).arg(&archive))?;
        let pushing = tokens.given().len();
        let mut inspect = nix2container(host, &["inspect", &format!("docker://{name}")]);
        succeed(inspect.env("REGISTRY_AUTH_FILE", &auth))?;
        let given = tokens.given();
        let reading = &given[pushing..];
        ensure!(!reading.is_empty());
        ensure!(
            reading.iter().all(|query| !query.contains("push")),
            "{reading:?}"
        );
        Ok(())
    });
}

#[test]
fn what_cannot_be_read_is_one_line_with_the_way_out() {
    test(|host| {
        let registry = Registry::start(host, Settings::default())?;
        let archive = small(host, &at(registry.address()))?;
        succeed(push(host).arg(&archive))?;
        let at = |words: &str| format!("docker://{}/{words}", registry.address());
        for (what, words) in [
            (
                at("a:unknown"),
                &["no image", "a:unknown", "correct its name"][..],
            ),
            (at("unknown:v1"), &["no image", "unknown:v1"]),
            (
                at(&format!("a@sha256:{}", "0".repeat(64))),
                &["no image", "sha256:000"],
            ),
            (at("A"), &["upper-case letter"]),
            ("docker://nix:0/nix/store/x".to_owned(), &["Nix", "archive"]),
            (
                "docker://127.0.0.1:1/a".to_owned(),
                &["127.0.0.1:1", "reached"],
            ),
        ] {
            let said = run(&mut nix2container(host, &["inspect", &what]))?.failure()?;
            ensure!(said.lines().count() == 1, "{what}: {said}");
            says(&said, words)?;
        }
        Ok(())
    });
}

#[test]
fn what_a_failing_registry_answers_is_one_line() {
    test(|host| {
        for (code, words) in [(403, "forbids"), (404, "correct"), (418, "is a registry")] {
            let registry = Answering::start(move |_, _| status(code, &[], ""))?;
            let what = format!("docker://{}", at(registry.address()));
            let said = run(&mut nix2container(host, &["inspect", &what]))?.failure()?;
            ensure!(said.lines().count() == 1, "{code}: {said}");
            says(&said, &[words])?;
        }
        Ok(())
    });
}
