//! `nix2container push` to registries that fail, and over connections that break.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use e2e::{
    host::{test, unique},
    image::{read_tar, write_tar},
    process::{run, succeed},
    registry::{Answering, Cutting, Registry, Resuming, Settings, auth_file, free_address, status},
    snapshots::says,
};
use serde_json::{Value, json};

use crate::push::{LOGIN, at, push, sized, small};

#[test]
fn each_failure_of_a_registry_is_one_line_with_the_way_out() {
    test(|host| {
        let denied = r#"{"errors":[{"code":"DENIED","message":"the reason"}]}"#;
        let greeted = |number: usize, answer: Option<Vec<u8>>| match number {
            0 => status(200, &[], ""),
            _ => answer,
        };
        for (what, code, headers, words) in [
            ("401", 401, &[][..], &["wants a login", "login"][..]),
            ("403", 403, &[], &["forbids", "403", "log in"]),
            ("404", 404, &[], &["404", "--ref"]),
            ("413", 413, &[], &["413", "limit"]),
            ("429", 429, &["Retry-After: 600"], &["429", "after 600 s"]),
            ("a page", 200, &[], &["status 200", "a registry"]),
        ] {
            let server = Answering::start(move |number, line| {
                greeted(
                    number,
                    match line.starts_with("HEAD") {
                        true => status(404, &[], ""),
                        false => status(code, headers, denied),
                    },
                )
            })?;
            let archive = small(host, &at(server.address()))?;
            let start = Instant::now();
            let said = run(push(host).arg("-q").arg(&archive))?.failure()?;
            says(&said, words).context(what)?;
            says(&said, &["cannot store", "/a", "the reason"]).context(what)?;
            ensure!(said.lines().count() == 1, "{what}: {said}");
            ensure!(start.elapsed() < Duration::from_secs(5), "{what}");
        }
        Ok(())
    });
}

#[test]
fn what_may_pass_is_tried_again_a_few_times() {
    test(|host| {
        let always = Answering::start(|_, _| status(500, &[], ""))?;
        let archive = small(host, &at(always.address()))?;
        let said = run(push(host).arg(&archive))?.failure()?;
        says(&said, &["trying again", "500", "its log"])?;
        ensure!(always.requests() == 5, "{} attempts", always.requests());

        let cut = Answering::start(|number, _| match number {
            0 => status(200, &[], ""),
            _ => Some(Vec::new()),
        })?;
        let archive = small(host, &at(cut.address()))?;
        let said = run(push(host).arg("-q").arg(&archive))?.failure()?;
        says(&said, &["cannot ask for", "can be reached"])?;
        ensure!(cut.requests() == 6, "{} requests", cut.requests());

        let busy = Answering::start(|number, _| match number {
            0 => status(429, &["Retry-After: 2"], ""),
            _ => status(403, &[], ""),
        })?;
        let archive = small(host, &at(busy.address()))?;
        let start = Instant::now();
        says(&run(push(host).arg(&archive))?.failure()?, &["403"])?;
        ensure!(start.elapsed() >= Duration::from_secs(2), "it did not wait");
        Ok(())
    });
}

#[test]
fn what_is_no_registry_is_named() {
    test(|host| {
        let garbage = Answering::start(|_, _| Some(b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()))?;
        let silent = Answering::start(|_, _| None)?;
        let impatient = &["--timeout", "1"][..];
        for (address, flags, words) in [
            (garbage.address(), &[][..], "HTTP"),
            (silent.address(), impatient, "no answer within 1 s"),
            (free_address()?, &[], "refused"),
        ] {
            let archive = small(host, &at(address))?;
            let mut push = push(host);
            push.arg("-q").args(flags).arg(&archive);
            let said = run(&mut push)?.failure()?;
            says(
                &said,
                &[words, &address.to_string(), "is the registry that is meant"],
            )?;
            ensure!(said.lines().count() == 1, "{said}");
        }
        Ok(())
    });
}

#[test]
fn an_upload_that_breaks_goes_on_where_it_was() {
    const BYTES: usize = 24 << 20;
    test(|host| {
        let resuming = Resuming::start(0)?;
        let proxy = Cutting::start(resuming.address(), 3, 6 << 20)?;
        let archive = sized(host, &at(proxy.address()), BYTES)?;
        succeed(push(host).arg("--plain-http").arg(&archive))?;
        let seen = resuming.seen();
        ensure!(proxy.cuts() == 3 && seen.asked == 3, "{seen:?}");
        ensure!(seen.ranges.len() == 3, "{seen:?}");
        ensure!(seen.blobs.len() == 2 && seen.manifests == 1, "{seen:?}");
        // Nothing was sent twice.
        ensure!(seen.received < BYTES + (64 << 10), "{seen:?}");
        Ok(())
    });
}

#[test]
fn an_upload_to_a_registry_that_forgets_it_begins_anew() {
    test(|host| {
        let registry = Registry::start(host, Settings::default())?;
        let proxy = Cutting::start(registry.address(), 2, 6 << 20)?;
        let archive = sized(host, &at(proxy.address()), 24 << 20)?;
        let name = succeed(push(host).arg("--plain-http").arg(&archive))?;
        ensure!(proxy.cuts() == 2);
        let back = host.dir().join(unique("back"));
        let mut copy = Command::new("skopeo");
        copy.args(["copy", "--src-tls-verify=false"])
            .arg(format!("docker://{}", name.trim_end()))
            .arg(format!("dir:{}", back.display()));
        succeed(&mut copy)?;

        let always = Cutting::start(registry.address(), usize::MAX, 1 << 20)?;
        let other = at(always.address()).replace("/a:", "/other:");
        let mut push = push(host);
        push.args(["-q", "--plain-http", "--ref", &other])
            .arg(&archive);
        let said = run(&mut push)?.failure()?;
        says(&said, &["cannot store sha256:", &other.replace(":v1", "")])
    });
}

#[test]
fn an_upload_that_is_given_up_is_cancelled() {
    test(|host| {
        // Where the upload is that the registry refuses a part of.
        for (refused, bytes, state) in
            [("PATCH", 1 << 20, 1), ("PUT", 1000, 1), ("PUT", 1 << 20, 2)]
        {
            let server = Answering::start(move |_, line| {
                match line.split(' ').next().unwrap_or_default() {
                    "GET" => status(200, &[], ""),
                    "HEAD" => status(404, &[], ""),
                    method if method == refused => status(403, &[], ""),
                    "DELETE" => status(204, &[], ""),
                    "PATCH" => status(202, &["Location: /v2/a/blobs/uploads/x?_state=2"], ""),
                    _ => status(202, &["Location: /v2/a/blobs/uploads/x?_state=1"], ""),
                }
            })?;
            let archive = sized(host, &at(server.address()), bytes)?;
            let said = run(push(host).args(["-q", "--plain-http"]).arg(&archive))?.failure()?;
            says(&said, &["cannot store sha256:", "403"])?;
            let heads = server.heads();
            let lines: Vec<_> = heads
                .iter()
                .filter_map(|head| head.lines().next())
                .collect();
            let [.., last, cancelled] = &*lines else {
                bail!("{refused}: {lines:#?}");
            };
            let expected = format!("DELETE /v2/a/blobs/uploads/x?_state={state} HTTP/1.1");
            ensure!(
                last.starts_with(refused) && *cancelled == expected,
                "{refused}: {lines:#?}"
            );
            let times = lines
                .iter()
                .filter(|line| line.starts_with("DELETE"))
                .count();
            ensure!(times == 1, "{refused}: {lines:#?}");
        }
        Ok(())
    });
}

#[test]
fn a_login_that_is_asked_for_in_the_middle_is_given_and_the_upload_goes_on() {
    test(|host| {
        let resuming = Resuming::start(1)?;
        let address = resuming.address();
        let right = json!({ "username": LOGIN.0, "password": LOGIN.1 });
        let file = auth_file(host.dir(), &address.to_string(), &right)?;
        let archive = sized(host, &at(address), 16 << 20)?;
        let mut push = push(host);
        push.env("REGISTRY_AUTH_FILE", &file);
        succeed(push.arg("--plain-http").arg(&archive))?;
        let seen = resuming.seen();
        ensure!(seen.asked >= 1 && seen.blobs.len() == 2, "{seen:?}");
        Ok(())
    });
}

#[test]
fn nothing_is_left_of_an_upload_that_is_given_up() {
    test(|host| {
        // Too little arrives at each attempt for it to count as one that goes on.
        let resuming = Resuming::start(0)?;
        let proxy = Cutting::start(resuming.address(), usize::MAX, 100 << 10)?;
        let archive = sized(host, &at(proxy.address()), 4 << 20)?;
        let said = run(push(host).arg("--plain-http").arg(&archive))?.failure()?;
        says(&said, &["trying again", "cannot store sha256:"])?;
        let (seen, left) = (resuming.seen(), resuming.uploads());
        ensure!(seen.received > 0 && seen.cancelled == 1, "{seen:?}");
        ensure!(left == 0, "{left} uploads are left");

        // What is wrong with the archive is found out when the upload has begun.
        let registry = Registry::start(host, Settings::default())?;
        let whole = small(host, &at(registry.address()))?;
        let mut files = read_tar(&whole)?;
        let is_layer = |content: &[u8]| serde_json::from_slice::<Value>(content).is_err();
        let layer = files
            .iter_mut()
            .find(|(name, content)| name.starts_with("blobs/") && is_layer(content));
        *layer
            .and_then(|(_, content)| content.last_mut())
            .context("no layer")? ^= 1;
        let damaged = host.dir().join("damaged");
        write_tar(&damaged, &files)?;
        run(push(host).arg(&damaged))?.failure()?;
        let begun = registry.requests("POST /v2/a/blobs/uploads/");
        ensure!(begun == 1, "{begun} uploads");
        let left = registry.uploads("a")?;
        ensure!(left == 0, "{left} uploads are left");
        Ok(())
    });
}

#[test]
fn a_damaged_archive_is_never_pushed() {
    test(|host| {
        let registry = Registry::start(host, Settings::default())?;
        let whole = sized(host, &at(registry.address()), 2 << 20)?;
        let files = read_tar(&whole)?;
        let damaged = host.dir().join("damaged");
        let layer = files
            .iter()
            .max_by_key(|(_, content)| content.len())
            .map(|(name, _)| name.clone())
            .context("no layer")?;
        let digest = layer.rsplit('/').next().unwrap_or_default().to_owned();

        let mut changed = files.clone();
        changed.remove(&layer);
        write_tar(&damaged, &changed)?;
        says(&run(push(host).arg(&damaged))?.failure()?, &[&digest])?;
        ensure!(registry.is_empty(), "a part was pushed");

        let mut changed = files.clone();
        *changed
            .get_mut(&layer)
            .and_then(|content| content.last_mut())
            .context("empty")? ^= 1;
        write_tar(&damaged, &changed)?;
        let digest_file = host.dir().join("digest");
        let mut push = push(host);
        push.arg("--digest-file").arg(&digest_file).arg(&damaged);
        says(&run(&mut push)?.failure()?, &[&digest])?;
        ensure!(!digest_file.exists(), "a failure wrote the digest");
        ensure!(registry.requests("PUT /v2/a/manifests") == 0);
        Ok(())
    });
}
