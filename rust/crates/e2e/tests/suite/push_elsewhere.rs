//! `nix2container push` to registries that send their clients to other servers.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};
use e2e::{
    host::{Host, test},
    process::{run, succeed},
    registry::{Answering, Certificate, Registry, Settings, auth_file, status},
    snapshots::says,
};
use serde_json::json;

use crate::push::{LOGIN, at, push, sized};

/// A layer that is larger than what is sent without `PATCH`.
const BYTES: usize = 1 << 20;

/// The address of a server by another name than that of the registries of these tests.
fn named(elsewhere: &Answering) -> String {
    format!("http://localhost:{}", elsewhere.address().port())
}

/// A push to a registry with a login.
fn with_login(host: &Host, registry: &Registry, archive: &Path) -> Result<Command> {
    let right = json!({ "username": LOGIN.0, "password": LOGIN.1 });
    let file = auth_file(host.dir(), &registry.address().to_string(), &right)?;
    let mut push = push(host);
    push.env("REGISTRY_AUTH_FILE", file).arg(archive);
    Ok(push)
}

#[test]
fn what_came_encrypted_is_not_sent_on_in_plain_text() {
    test(|host| {
        let certificate = Certificate::new(host)?;
        let elsewhere = Answering::start(|_, _| status(200, &[], ""))?;
        let name = named(&elsewhere);
        let encrypted = Settings {
            certificate: Some(&certificate),
            login: Some(LOGIN),
            ..Settings::default()
        };
        let refuse = |registry: &Registry, archive: &Path, words: &[&str]| {
            let mut push = with_login(host, registry, archive)?;
            push.arg("-q").arg("--ca-file").arg(certificate.file());
            let said = run(&mut push)?.failure()?;
            says(&said, words)?;
            says(&said, &["localhost in plain text", "with https"])?;
            ensure!(said.lines().count() == 1, "{said}");
            let heads = elsewhere.heads();
            ensure!(heads.is_empty(), "{heads:?}");
            Ok(())
        };

        let registry = Registry::start(
            host,
            Settings {
                blobs_at: Some(&name),
                ..encrypted
            },
        )?;
        let archive = sized(host, &at(registry.address()), BYTES)?;
        let mut first = with_login(host, &registry, &archive)?;
        succeed(first.arg("--ca-file").arg(certificate.file()))?;
        // Only what it has does it send its clients away for.
        refuse(&registry, &archive, &["cannot ask for sha256:"])?;
        ensure!(registry.requests("HTTP/1.1\" 307 ") == 1);

        let registry = Registry::start(
            host,
            Settings {
                uploads_at: Some(&name),
                ..encrypted
            },
        )?;
        let archive = sized(host, &at(registry.address()), BYTES)?;
        refuse(&registry, &archive, &["cannot store sha256:"])
    });
}

#[test]
fn a_login_is_for_the_registry_alone() {
    test(|host| {
        let has_login = |head: &str| head.to_ascii_lowercase().contains("authorization");
        let plain = Settings {
            login: Some(LOGIN),
            ..Settings::default()
        };
        let elsewhere = Answering::start(|_, _| status(200, &[], ""))?;
        let registry = Registry::start(
            host,
            Settings {
                blobs_at: Some(&named(&elsewhere)),
                ..plain
            },
        )?;
        let archive = sized(host, &at(registry.address()), BYTES)?;
        succeed(&mut with_login(host, &registry, &archive)?)?;
        let again = run(&mut with_login(host, &registry, &archive)?)?;
        ensure!(
            again.stderr.matches(": exists already").count() == 2,
            "{}",
            again.stderr
        );
        again.success()?;
        let heads = elsewhere.heads();
        ensure!(heads.len() == 2, "{heads:#?}");
        ensure!(!heads.iter().any(|head| has_login(head)), "{heads:#?}");

        for (what, code) in [("it takes all", 202), ("it wants a login itself", 401)] {
            let elsewhere = Answering::start(move |_, line| {
                match (code, line.split(' ').next().unwrap_or_default()) {
                    (401, _) => status(401, &["WWW-Authenticate: Basic realm=\"x\""], ""),
                    (_, "PATCH") => status(202, &["Location: /u"], ""),
                    _ => status(201, &[], ""),
                }
            })?;
            let registry = Registry::start(
                host,
                Settings {
                    uploads_at: Some(&named(&elsewhere)),
                    ..plain
                },
            )?;
            let archive = sized(host, &at(registry.address()), BYTES)?;
            // The registry itself has got nothing.
            run(&mut with_login(host, &registry, &archive)?)?.failure()?;
            let heads = elsewhere.heads();
            let is_sent = |method: &str| heads.iter().any(|head| head.starts_with(method));
            ensure!(is_sent("PATCH /v2/a/blobs/uploads/"), "{what}: {heads:#?}");
            ensure!(is_sent("PUT /u?") == (code == 202), "{what}: {heads:#?}");
            ensure!(
                !heads.iter().any(|head| has_login(head)),
                "{what}: {heads:#?}"
            );
        }
        Ok(())
    });
}
