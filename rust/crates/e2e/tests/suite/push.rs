//! `nix2container push`, against Debian's `docker-registry`.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    cache::Cache,
    containerd::NIX,
    host::{Host, test, unique},
    image::{Image, Layer, read_tar, write_tar},
    node::{Node, build, reference},
    process::{run, succeed},
    registry::{Certificate, Registry, Settings, auth_file, free_address},
    snapshots::says,
    store::Store,
};
use serde_json::{Value, json};

pub(crate) const LOGIN: (&str, &str) = ("user", "pass:word");

/// What `hello` prints.
const HELLO: &str = "Hello, world!\n";

/// A call of `nix2container`, for which this machine has no credentials.
pub(crate) fn nix2container(host: &Host, words: &[&str]) -> Command {
    let mut command = Command::new(host.nix2container());
    command.args(words).env("HOME", host.dir());
    for name in ["REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"] {
        command.env_remove(name);
    }
    command
}

/// `nix2container push` without credentials.
pub(crate) fn push(host: &Host) -> Command {
    nix2container(host, &["push"])
}

/// The name of the repository `a` of a registry.
pub(crate) fn at(address: SocketAddr) -> String {
    format!("{address}/a:v1")
}

/// A small image of one layer.
pub(crate) fn small(host: &Host, name: &str) -> Result<PathBuf> {
    sized(host, name, 1000)
}

/// An image of a layer with so many bytes that do not repeat.
pub(crate) fn sized(host: &Host, name: &str, bytes: usize) -> Result<PathBuf> {
    let mut content = vec![0; bytes];
    fastrand::Rng::with_seed(7).fill(&mut content);
    let archive = host.dir().join(unique("archive"));
    let layer = Layer::default().file("content", 0o644, &content)?;
    Image::new(name).layer(layer).write(&archive)?;
    Ok(archive)
}

/// The archive as if its image were for another architecture.
fn for_architecture(host: &Host, archive: &Path, architecture: &str) -> Result<PathBuf> {
    let mut files = read_tar(archive)?;
    let index: Value = serde_json::from_slice(&files["index.json"])?;
    let mut index = index;
    index["manifests"][0]["platform"] = json!({ "os": "linux", "architecture": architecture });
    // Another manifest than the first.
    let name = index["manifests"][0]["digest"]
        .as_str()
        .context("no digest")?
        .replace(':', "/");
    let old = files
        .remove(&format!("blobs/{name}"))
        .context("no manifest")?;
    let mut manifest: Value = serde_json::from_slice(&old)?;
    manifest["annotations"] = json!({ "for": architecture });
    let json = manifest.to_string().into_bytes();
    let digest = e2e::image::sha256(&json);
    index["manifests"][0]["digest"] = format!("sha256:{digest}").into();
    index["manifests"][0]["size"] = json.len().into();
    files.insert(format!("blobs/sha256/{digest}"), json);
    files.insert("index.json".to_owned(), index.to_string().into_bytes());
    let out = host.dir().join(unique(architecture));
    write_tar(&out, &files)?;
    Ok(out)
}

/// What skopeo finds by the name that a push has printed.
pub(crate) fn pulled(name: &str, credentials: Option<(&str, &str)>) -> Result<Value> {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["inspect", "--raw", "--tls-verify=false"]);
    if let Some((user, password)) = credentials {
        skopeo.args(["--creds", &format!("{user}:{password}")]);
    }
    let json = succeed(skopeo.arg(format!("docker://{}", name.trim_end())))?;
    Ok(serde_json::from_str(&json)?)
}

#[test]
fn what_is_pushed_is_pulled_by_its_digest_and_runs() {
    test(|host| {
        let node = Node::start(host)?;
        let registry = Registry::start(host, Settings::default())?;
        let program = format!("{}/bin/hello", host.fixture("hello")?);
        for flags in [&[][..], &["--annotations", "per-path"]] {
            let archive = build(
                host,
                &reference("hello"),
                &[&program],
                &host.fixture("hello-closure-info")?,
                flags,
            )?;
            let digest_file = host.dir().join(unique("digest"));
            // As the Go project is called.
            let name = succeed(
                push(host)
                    .args(["--plain-http", "--digest-file"])
                    .arg(&digest_file)
                    .args(["--ref", &at(registry.address())])
                    .arg(&archive),
            )?;
            let digest = fs::read_to_string(digest_file)?;
            ensure!(
                name == format!("{}/a@{digest}\n", registry.address()),
                "{name:?}"
            );

            let back = host.dir().join(unique("back"));
            succeed(
                Command::new("skopeo")
                    .args(["copy", "--src-tls-verify=false"])
                    .arg(format!("docker://{}", name.trim_end()))
                    .arg(format!("oci-archive:{}:x", back.display())),
            )?;
            let files = read_tar(&back)?;
            let manifest = format!("blobs/{}", digest.replace(':', "/"));
            ensure!(
                read_tar(&archive)?[&manifest] == files[&manifest],
                "the manifest that comes back is another"
            );
            let image = reference("back");
            let mut load = node.containerd.load_command(NIX, &back);
            succeed(load.args(["--ref", &image]))?;
            let said = node.containerd.run(NIX, &image, &[])?.success()?;
            ensure!(said == HELLO, "{said:?}");
            node.containerd.remove_image(&image)?;
        }
        Ok(())
    });
}

#[test]
fn a_second_push_transfers_nothing_and_the_name_may_be_in_the_archive() {
    test(|host| {
        let registry = Registry::start(host, Settings::default())?;
        let archive = sized(host, &at(registry.address()), 3 << 20)?;
        // Plain HTTP to loopback needs no flag.
        // Nobody listens at this proxy, which is not asked for what is on this machine.
        let mut first = push(host);
        first.env("http_proxy", format!("http://{}", free_address()?));
        let first = succeed(first.arg(&archive))?;
        let uploads = || registry.requests("POST /v2/a/blobs/uploads/");
        let sent = uploads();
        ensure!(sent == 2, "{sent} uploads for a config and a layer");
        let second = succeed(push(host).arg(&archive))?;
        ensure!(first == second && uploads() == sent);
        Ok(())
    });
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    test(|host| {
        let registry = Registry::start(host, Settings::default())?;
        let archive = small(host, &at(registry.address()))?;
        let would = succeed(push(host).arg("--dry-run").arg(&archive))?;
        let lines = |text: &str, words: &str| text.lines().filter(|l| l.contains(words)).count();
        ensure!(lines(&would, "would be transferred") == 2, "{would}");
        ensure!(registry.is_empty(), "a dry run has pushed something");
        let name = succeed(push(host).arg(&archive))?;
        ensure!(
            would.ends_with(&format!("would be pushed: {name}")),
            "{would}"
        );
        let would = succeed(push(host).arg("--dry-run").arg(&archive))?;
        ensure!(lines(&would, "exists already") == 2, "{would}");
        Ok(())
    });
}

#[test]
fn archives_of_several_platforms_become_one_index() {
    test(|host| {
        let registry = Registry::start(host, Settings::default())?;
        let archive = small(host, &at(registry.address()))?;
        let arm = for_architecture(host, &archive, "arm64")?;
        let amd = for_architecture(host, &archive, "amd64")?;
        let name = succeed(push(host).args([&arm, &amd]))?;
        let index = pulled(&name, None)?;
        let platforms: Vec<_> = index["manifests"]
            .as_array()
            .context("no index")?
            .iter()
            .map(|manifest| manifest["platform"]["architecture"].clone())
            .collect();
        ensure!(platforms == ["amd64", "arm64"], "{index}");
        ensure!(index["mediaType"] == "application/vnd.oci.image.index.v1+json");
        for manifest in index["manifests"].as_array().into_iter().flatten() {
            let digest = manifest["digest"].as_str().context("no digest")?;
            pulled(&format!("{}/a@{digest}", registry.address()), None)?;
        }
        // The order of the archives does not count.
        ensure!(succeed(push(host).args([&amd, &arm]))? == name);

        let other = sized(host, &at(registry.address()), 1001)?;
        let other = for_architecture(host, &other, "arm64")?;
        let said = run(push(host).args([&arm, &other]))?.failure()?;
        let (arm, other) = (arm.display().to_string(), other.display().to_string());
        says(&said, &[&arm, &other, "linux/arm64"])
    });
}

#[test]
fn a_name_that_nix_resolves_is_not_pushed_to() {
    test(|host| {
        let name = "nix:0/nix/store/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-a.tar:latest";
        let archive = small(host, name)?;
        let said = run(push(host).arg(&archive))?.failure()?;
        says(&said, &["nix:0", "pass --ref"])
    });
}

#[test]
fn a_certificate_must_be_known() {
    test(|host| {
        let certificate = Certificate::new(host)?;
        let settings = Settings {
            certificate: Some(&certificate),
            login: Some(LOGIN),
            ..Settings::default()
        };
        let registry = Registry::start(host, settings)?;
        let port = registry.address().port();
        for host_name in ["127.0.0.1", "localhost"] {
            let domain = format!("{host_name}:{port}");
            let right = json!({ "username": LOGIN.0, "password": LOGIN.1 });
            let file = auth_file(host.dir(), &domain, &right)?;
            let archive = small(host, &format!("{domain}/a:v1"))?;
            let attempt = |complete: &dyn Fn(&mut Command)| {
                let mut push = push(host);
                push.env("REGISTRY_AUTH_FILE", &file).arg(&archive);
                complete(&mut push);
                run(&mut push)
            };
            let said = attempt(&|_| {})?.failure()?;
            says(&said, &["certificate", "--ca-file"])?;
            let name = attempt(&|push| {
                push.arg("--ca-file").arg(certificate.file());
            })?
            .success()?;
            pulled(&name, Some(LOGIN))?;
            attempt(&|push| {
                push.env("SSL_CERT_FILE", certificate.file());
            })?
            .success()?;
        }
        Ok(())
    });
}

#[test]
fn store_paths_that_no_cache_has_are_warned_of() {
    test(|host| {
        let registry = Registry::start(host, Settings::default())?;
        let store = Store::new(host)?;
        let here = store.build("cached", "echo x > $out", &[])?;
        let missing = store.build("uncached", "echo y > $out", &[])?;
        let (empty, cache) = (Cache::start(host)?, Cache::start(host)?);
        let paths = [here.path().to_owned(), missing.path().to_owned()];
        let layer = Layer::per_path(&[&paths[0], &paths[1]])?;
        let archive = host.dir().join(unique("archive"));
        Image::new(&at(registry.address()))
            .layer(layer)
            .write(&archive)?;
        let info = store.closure_info(&[&here, &missing])?;
        cache.add(&[here], None)?;
        let closure = build(host, &at(registry.address()), &["/x"], info.path(), &[])?;
        let ended = run(push(host)
            .args(["--check-cache", &cache.url()])
            .arg(&closure))?;
        // The paths that the closure-info lists, and itself.
        says(
            &ended.stderr,
            &["2 of the 3 store paths", &paths[1], info.path()],
        )?;
        ended.success()?;

        let mut checked = push(host);
        checked
            .args(["--check-cache", &empty.url(), "--check-cache", &cache.url()])
            .arg(&archive);
        let ended = run(&mut checked)?;
        says(&ended.stderr, &["1 of the 2 store paths", &paths[1]])?;
        ensure!(!ended.stderr.contains(&paths[0]), "{}", ended.stderr);
        ended.success()?;

        cache.add(&[missing], None)?;
        let ended = run(&mut checked)?;
        ensure!(
            !ended.stderr.contains("no binary cache"),
            "{}",
            ended.stderr
        );
        ended.success()?;
        Ok(())
    });
}

#[test]
fn a_blob_is_mounted_from_where_it_is_known_to_be() {
    test(|host| {
        let registry = Registry::start(host, Settings::default())?;
        let base = sized(host, &at(registry.address()), 1 << 20)?;
        succeed(push(host).arg(&base))?;
        let source = format!("containerd.io/distribution.source.{}", registry.address());
        let mut content = vec![0; 1 << 20];
        fastrand::Rng::with_seed(7).fill(&mut content);
        for (from, mounted) in [("a", 1), ("nowhere", 0)] {
            let layer = Layer::default()
                .file("content", 0o644, &content)?
                .annotation(&source, from);
            let archive = host.dir().join(unique("archive"));
            let name = format!("{}/on-{from}:v1", registry.address());
            Image::new(&name).layer(layer).write(&archive)?;
            let ended = run(push(host).arg(&archive))?;
            let found = ended.stderr.matches(": mounted").count();
            ensure!(found == mounted, "{from}: {}", ended.stderr);
            pulled(&ended.success()?, None)?;
        }
        Ok(())
    });
}
