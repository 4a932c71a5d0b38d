//! `nix2container push`: who the user is, and how a registry is told.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use e2e::{
    host::{Host, test, unique},
    process::{run, succeed},
    registry::{FirstTokens, Holding, IDENTITY, Registry, SHORT, Settings, TokenServer, auth_file},
    snapshots::says,
};
use serde_json::json;

use crate::push::{LOGIN, at, pulled, push, sized, small};

/// A push with a credential helper that does this after it has read which host is meant.
fn with_helper(
    host: &Host,
    registry: &Registry,
    archive: &Path,
    script: &str,
    key: &str,
) -> Result<Command> {
    let programs = host.dir().join("programs");
    fs::create_dir_all(&programs)?;
    let helper = programs.join("docker-credential-test");
    fs::write(&helper, format!("#!/bin/sh\nread host\n{script}\n"))?;
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755))?;
    let value = match key {
        "credsStore" => json!("test"),
        _ => json!({ registry.address().to_string(): "test" }),
    };
    let file = host.dir().join(unique("auth"));
    fs::write(&file, json!({ key: value }).to_string())?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = push(host);
    command
        .env("REGISTRY_AUTH_FILE", file)
        .env("PATH", format!("{}:{path}", programs.display()))
        .arg(archive);
    Ok(command)
}

/// A registry that wants tokens, and the server that gives them.
fn with_tokens(host: &Host, first: FirstTokens) -> Result<(TokenServer, Registry)> {
    let tokens = TokenServer::start(host, LOGIN, first)?;
    let settings = Settings {
        tokens: Some(&tokens),
        ..Settings::default()
    };
    let registry = Registry::start(host, settings)?;
    Ok((tokens, registry))
}

#[test]
fn logins_are_found_where_docker_and_podman_keep_them() {
    test(|host| {
        let settings = Settings {
            login: Some(LOGIN),
            ..Settings::default()
        };
        let registry = Registry::start(host, settings)?;
        let address = registry.address().to_string();
        let archive = small(host, &at(registry.address()))?;
        let said = run(push(host).arg(&archive))?.failure()?;
        says(&said, &["wants a login", "skopeo login", &address])?;

        let right = json!({ "username": LOGIN.0, "password": LOGIN.1 });
        let wrong = json!({ "username": LOGIN.0, "password": "wrong" });
        let wrong = auth_file(host.dir(), &address, &wrong)?;
        let said = run(push(host).env("REGISTRY_AUTH_FILE", &wrong).arg(&archive))?.failure()?;
        says(&said, &[&wrong.display().to_string(), "refused"])?;
        ensure!(registry.is_empty());

        // skopeo writes the file itself.
        let file = host.dir().join(unique("auth"));
        succeed(
            Command::new("skopeo")
                .args(["login", "--tls-verify=false", "-u", LOGIN.0, "-p", LOGIN.1])
                .arg("--authfile")
                .arg(&file)
                .arg(&address),
        )?;
        let name = succeed(push(host).env("REGISTRY_AUTH_FILE", &file).arg(&archive))?;
        pulled(&name, Some(LOGIN))?;

        // The key with the path of the repository counts more.
        let dir = host.dir().join(unique("docker"));
        fs::create_dir_all(&dir)?;
        let json = json!({ "auths": {
            address.clone(): { "username": "nobody", "password": "x" },
            format!("{address}/a"): right,
        }});
        fs::write(dir.join("config.json"), json.to_string())?;
        // What comes first in the order counts.
        let runtime = host.dir().join(unique("runtime"));
        fs::create_dir_all(runtime.join("containers"))?;
        fs::copy(&wrong, runtime.join("containers/auth.json"))?;
        let docker = || {
            let mut command = push(host);
            command
                .env("DOCKER_CONFIG", &dir)
                .env("XDG_RUNTIME_DIR", &runtime)
                .arg(&archive);
            command
        };
        succeed(&mut docker())?;
        let said = run(docker().env("REGISTRY_AUTH_FILE", &wrong))?.failure()?;
        says(&said, &["refused"])?;
        let said = run(docker().env_remove("DOCKER_CONFIG"))?.failure()?;
        says(&said, &["refused"])
    });
}

#[test]
fn credential_helpers_are_asked() {
    test(|host| {
        let settings = Settings {
            login: Some(LOGIN),
            ..Settings::default()
        };
        let registry = Registry::start(host, settings)?;
        let archive = small(host, &at(registry.address()))?;
        let helped = |script: &str, key: &str| with_helper(host, &registry, &archive, script, key);
        let answer = json!({ "Username": LOGIN.0, "Secret": LOGIN.1 });
        let right = format!("test \"$host\" = {} && echo '{answer}'", registry.address());
        for key in ["credHelpers", "credsStore"] {
            succeed(&mut helped(&right, key)?)?;
        }
        let said = run(&mut helped(
            "echo the keyring is locked >&2; exit 1",
            "credsStore",
        )?)?;
        says(
            &said.failure()?,
            &["docker-credential-test", "the keyring is locked"],
        )?;
        let none = "echo credentials not found in native keychain; exit 1";
        let said = run(&mut helped(none, "credsStore")?)?.failure()?;
        says(&said, &["wants a login"])
    });
}

#[test]
fn a_token_that_is_no_longer_enough_is_renewed() {
    test(|host| {
        for reading_only in [0, 1] {
            let first = FirstTokens {
                reading_only,
                ..FirstTokens::default()
            };
            let (tokens, registry) = with_tokens(host, first)?;
            let address = registry.address().to_string();
            let archive = sized(host, &at(registry.address()), 2 << 20)?;
            let said = run(push(host).arg(&archive))?.failure()?;
            says(&said, &["wants a login"])?;

            let right = json!({ "username": LOGIN.0, "password": LOGIN.1 });
            let file = auth_file(host.dir(), &address, &right)?;
            succeed(push(host).env("REGISTRY_AUTH_FILE", &file).arg(&archive))?;
            let given = tokens.given();
            ensure!(given.len() == 1 + reading_only, "{given:?}");
            for query in given {
                ensure!(query.contains("scope=repository:a:pull,push"), "{query}");
            }
        }
        // One that never allows it is asked twice, and no more.
        let first = FirstTokens {
            reading_only: 1000,
            ..FirstTokens::default()
        };
        let (tokens, registry) = with_tokens(host, first)?;
        let right = json!({ "username": LOGIN.0, "password": LOGIN.1 });
        let file = auth_file(host.dir(), &registry.address().to_string(), &right)?;
        let archive = small(host, &at(registry.address()))?;
        let said = run(push(host).env("REGISTRY_AUTH_FILE", &file).arg(&archive))?.failure()?;
        says(&said, &["refused", &file.display().to_string()])?;
        ensure!(tokens.given().len() == 2, "{:?}", tokens.given());
        Ok(())
    });
}

#[test]
fn an_identity_token_logs_in_without_a_password() {
    test(|host| {
        let (tokens, registry) = with_tokens(host, FirstTokens::default())?;
        let address = registry.address().to_string();
        let archive = small(host, &at(registry.address()))?;
        // As registries of clouds have it written: a user that counts for nothing beside the token.
        let with = |token: &str| {
            let user = STANDARD.encode("00000000-0000-0000-0000-000000000000:");
            let login = json!({ "auth": user, "identitytoken": token });
            auth_file(host.dir(), &address, &login)
        };
        let is_refresh = |asked: &str| {
            asked.starts_with("POST grant_type=refresh_token&")
                && asked.contains("&scope=repository:a:pull,push")
                && asked.contains("&service=tests")
        };
        let helper = |token: &str| {
            let answer = json!({ "Username": "<token>", "Secret": token });
            with_helper(
                host,
                &registry,
                &archive,
                &format!("echo '{answer}'"),
                "credHelpers",
            )
        };
        let file = |file: &Path| {
            let mut push = push(host);
            push.env("REGISTRY_AUTH_FILE", file).arg(&archive);
            push
        };

        let refused = with("another")?;
        for (mut push, source) in [
            (file(&refused), refused.display().to_string()),
            (helper("another")?, "docker-credential-test".to_owned()),
        ] {
            let said = run(push.arg("-q"))?.failure()?;
            let login = format!("skopeo login {address}");
            says(&said, &[&source, "refused", "log in again", &login])?;
            ensure!(said.lines().count() == 1, "{said}");
            ensure!(!said.contains("another"), "it tells the secret: {said}");
        }
        ensure!(registry.is_empty() && tokens.given().is_empty());

        for mut push in [file(&with(IDENTITY)?), helper(IDENTITY)?] {
            let before = tokens.given().len();
            succeed(&mut push)?;
            let given = tokens.given().split_off(before);
            ensure!(given.len() == 1 && is_refresh(&given[0]), "{given:?}");
        }
        ensure!(registry.requests("PUT /v2/a/manifests/v1") == 2);
        Ok(())
    });
}

#[test]
fn a_token_that_expires_in_the_middle_is_renewed_and_nothing_is_sent_twice() {
    const BYTES: usize = 8 << 20;
    test(|host| {
        for request in [
            "HEAD /v2/a/blobs/",
            "POST /v2/a/blobs/uploads/",
            "PUT /v2/a/blobs/uploads/",
            "PUT /v2/a/manifests/",
        ] {
            let first = FirstTokens {
                short: 1,
                ..FirstTokens::default()
            };
            let (tokens, registry) = with_tokens(host, first)?;
            let slow = Holding::start(registry.address(), request, SHORT)?;
            let right = json!({ "username": LOGIN.0, "password": LOGIN.1 });
            let file = auth_file(host.dir(), &slow.address().to_string(), &right)?;
            let archive = sized(host, &at(slow.address()), BYTES)?;
            let mut push = push(host);
            push.env("REGISTRY_AUTH_FILE", &file);
            let ended = run(push.arg("--plain-http").arg(&archive))?;
            ensure!(
                !ended.stderr.contains("trying again"),
                "{request}: {}",
                ended.stderr
            );
            ended.success().context(request)?;
            // The first request, which has no token, and the one that was held.
            let refused = registry.requests("HTTP/1.1\" 401 ");
            ensure!(slow.has_held() && refused == 2, "{request}: {refused}");
            // The one that expires, and the one that does not.
            let given = tokens.given();
            ensure!(given.len() == 2, "{request}: {given:?}");
            let sent = slow.forwarded();
            ensure!(sent < BYTES + (64 << 10), "{request}: {sent} bytes");
            ensure!(registry.uploads("a")? == 0, "{request}: an upload is left");
        }
        Ok(())
    });
}

#[test]
fn a_token_that_has_expired_when_a_layer_begins_is_renewed() {
    test(|host| {
        let first = FirstTokens {
            short: 1,
            ..FirstTokens::default()
        };
        let (tokens, registry) = with_tokens(host, first)?;
        let slow = Holding::start(registry.address(), "PATCH ", SHORT)?;
        let right = json!({ "username": LOGIN.0, "password": LOGIN.1 });
        let file = auth_file(host.dir(), &slow.address().to_string(), &right)?;
        let archive = sized(host, &at(slow.address()), 8 << 20)?;
        let mut push = push(host);
        push.env("REGISTRY_AUTH_FILE", &file);
        succeed(push.arg("--plain-http").arg(&archive))?;
        ensure!(slow.has_held() && tokens.given().len() == 2);
        // The upload that had begun is the one that ends.
        let begun = registry.requests("POST /v2/a/blobs/uploads/");
        ensure!(begun == 2, "{begun} uploads for a config and a layer");
        Ok(())
    });
}
