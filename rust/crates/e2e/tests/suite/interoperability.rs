//! Other tools, and the specification: they take what `nix2container` makes, and it takes what
//! they make of that.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::{
    containerd::{Containerd, NIX},
    host::{Host, test, unique},
    image::{Layer, read_tar},
    node::{Node, build, busybox_image, export, reference},
    process::succeed,
    registry::{Registry, Settings},
};
use jsonschema::{Retrieve, Uri, Validator};
use serde_json::Value;

use crate::push::{at, push};

/// Where Debian has the schemas of the image specification.
const SCHEMAS: &str = "/usr/share/gocode/src/github.com/opencontainers/image-spec/schema";

/// Finds the schemas that a schema refers to, whatever URI they have.
struct Schemas;

impl Retrieve for Schemas {
    fn retrieve(
        &self,
        uri: &Uri<String>,
    ) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        let name = uri.as_str().rsplit('/').next().unwrap_or_default();
        Ok(schema(name)?)
    }
}

fn schema(name: &str) -> Result<Value> {
    let file = Path::new(SCHEMAS).join(name);
    let json = fs::read(&file).with_context(|| format!("no schema at {}", file.display()))?;
    Ok(serde_json::from_slice(&json)?)
}

fn validator(name: &str) -> Result<Validator> {
    let built = jsonschema::options()
        .with_retriever(Schemas)
        .build(&schema(name)?);
    built.map_err(|error| anyhow!("{name}: {error}"))
}

fn validate(name: &str, document: &Value) -> Result<()> {
    let valid = validator(name)?;
    let errors: Vec<_> = valid
        .iter_errors(document)
        .map(|error| error.to_string())
        .collect();
    ensure!(errors.is_empty(), "{name}: {errors:?}: {document:#}");
    Ok(())
}

/// The archives that `build` can make, each with the name of its format.
fn archives(host: &Host) -> Result<Vec<(&'static str, PathBuf)>> {
    let program = format!("{}/bin/hello", host.fixture("hello")?);
    let info = host.fixture("hello-closure-info")?;
    let base = busybox_image(host, &reference("base"), [Layer::default().dir("etc")?])?;
    let base = base.to_str().context("a path that is no text")?;
    let build = |flags: &[&str]| build(host, &reference("built"), &[&program], &info, flags);
    Ok(vec![
        ("closure", build(&[])?),
        ("per path", build(&["--annotations", "per-path"])?),
        ("with a base", build(&["--from-image", base])?),
    ])
}

#[test]
fn what_is_built_is_what_the_specification_says() {
    test(|host| {
        let there = Path::new(SCHEMAS).is_dir();
        host.requires(
            there,
            "the schemas of the image specification are not installed",
        )?;
        for (what, archive) in archives(host)? {
            let files = read_tar(&archive)?;
            let json = |name: &str| -> Result<Value> {
                let content = files
                    .get(name)
                    .with_context(|| format!("{what}: no {name}"))?;
                Ok(serde_json::from_slice(content)?)
            };
            let blob = |descriptor: &Value| -> Result<Value> {
                let digest = descriptor["digest"].as_str().context("no digest")?;
                json(&format!("blobs/{}", digest.replace(':', "/")))
            };
            let index = json("index.json")?;
            let manifest = blob(&index["manifests"][0])?;
            let config = blob(&manifest["config"])?;
            let documents = [
                (
                    "image-layout-schema.json",
                    json("oci-layout")?,
                    "imageLayoutVersion",
                ),
                ("image-index-schema.json", index.clone(), "schemaVersion"),
                ("image-manifest-schema.json", manifest.clone(), "config"),
                ("config-schema.json", config, "rootfs"),
            ];
            for (schema, document, required) in documents {
                validate(schema, &document).context(what)?;
                // The schema is one that refuses something.
                let mut without = document;
                let object = without.as_object_mut().context("no object")?;
                ensure!(object.remove(required).is_some(), "{schema}: no {required}");
                ensure!(
                    validate(schema, &without).is_err(),
                    "{schema} takes everything"
                );
            }
            let descriptors = [&index["manifests"][0], &manifest["config"]];
            let layers = manifest["layers"].as_array().context("no layers")?;
            for descriptor in descriptors.into_iter().chain(layers) {
                validate("content-descriptor.json", descriptor).context(what)?;
            }
        }
        Ok(())
    });
}

fn inspect(host: &Host, what: &Path) -> Result<Value> {
    let mut inspect = Command::new(host.nix2container());
    let text = succeed(inspect.args(["inspect", "--json"]).arg(what))?;
    Ok(serde_json::from_str(&text)?)
}

fn inspect_image(containerd: &Containerd, name: &str) -> Result<Value> {
    let text = succeed(&mut containerd.nix2container(&["inspect", "--json", name]))?;
    Ok(serde_json::from_str(&text)?)
}

/// All of an image but its names, which not every format keeps.
fn nameless(mut told: Value) -> Value {
    let mut image = told["images"][0].take();
    image["names"] = Value::Null;
    image
}

/// Copies an image by skopeo, from one of its transports to another, as it is. Without being told
/// it compresses layers that are plain.
fn skopeo_copy(from: &str, to: &str) -> Result<()> {
    skopeo(&["copy", "--preserve-digests", from, to])
}

fn skopeo(arguments: &[&str]) -> Result<()> {
    succeed(
        Command::new("skopeo")
            .arg("--insecure-policy")
            .args(arguments),
    )?;
    Ok(())
}

#[test]
fn skopeo_copies_an_image_with_its_annotations() {
    test(|host| {
        host.needs("skopeo")?;
        for (what, archive) in archives(host)? {
            let from = format!("oci-archive:{}", archive.display());
            let told = succeed(Command::new("skopeo").args(["inspect", &from]))?;
            let told: Value = serde_json::from_str(&told)?;
            let expected = nameless(inspect(host, &archive)?);
            ensure!(told["Digest"] == expected["digest"], "{what}: {told:#}");
            let layers = expected["layers"].as_array().context("no layers")?;
            let digests: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
            ensure!(told["Layers"] == Value::from(digests), "{what}: {told:#}");

            let copy = host.dir().join(unique("copy"));
            skopeo_copy(&from, &format!("oci-archive:{}", copy.display()))?;
            let copied = nameless(inspect(host, &copy)?);
            ensure!(copied == expected, "{what}: {copied:#} {expected:#}");

            // A directory has the manifest as it is, and so can come back.
            let dir = host.dir().join(unique("dir"));
            let back = host.dir().join(unique("back"));
            skopeo_copy(&from, &format!("dir:{}", dir.display()))?;
            let back_to = format!("oci-archive:{}", back.display());
            skopeo_copy(&format!("dir:{}", dir.display()), &back_to)?;
            let copied = nameless(inspect(host, &back)?);
            ensure!(copied == expected, "{what}: {copied:#} {expected:#}");

            // That of `docker save` has no place for annotations.
            let docker = host.dir().join(unique("docker"));
            let to = format!("docker-archive:{}:copied:1", docker.display());
            skopeo(&["copy", &from, &to])?;
            let copied = inspect(host, &docker)?;
            let image = &copied["images"][0];
            let name = image["names"][0].as_str().unwrap_or_default();
            ensure!(name.ends_with("copied:1"), "{copied:#}");
            ensure!(image["config"] == expected["config"], "{what}: {copied:#}");
            let kinds = image["layers"].as_array().context("no layers")?;
            ensure!(kinds.len() == layers.len());
            ensure!(
                kinds.iter().all(|layer| layer["kind"] == "ordinary"),
                "{copied:#}"
            );
        }
        Ok(())
    });
}

#[test]
fn containerd_exports_and_imports_an_image_with_its_annotations() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let hello = format!("{}/bin/hello", host.fixture("hello")?);
        let info = host.fixture("hello-closure-info")?;
        for flags in [&[][..], &["--annotations", "per-path"]] {
            let image = reference("round-trip");
            let archive = build(host, &image, &[&hello], &info, flags)?;
            containerd.load(NIX, &archive)?;
            let expected = inspect_image(containerd, &image)?;
            let exported = host.dir().join(unique("exported"));
            export(containerd, &[], &image, &exported)?;
            containerd.remove_image(&image)?;
            let told = inspect(host, &exported)?;
            ensure!(
                told["images"] == expected["images"],
                "{told:#} {expected:#}"
            );

            succeed(
                containerd
                    .ctr(&["images", "import", "--no-unpack"])
                    .arg(&exported),
            )?;
            let imported = inspect_image(containerd, &image)?;
            let (imported, expected) = (nameless(imported), nameless(expected));
            ensure!(
                imported["layers"] == expected["layers"],
                "{imported:#} {expected:#}"
            );
            ensure!(imported["closure"] == expected["closure"], "{imported:#}");
            containerd.load(NIX, &exported)?;
            containerd.run(NIX, &image, &[&hello])?.success()?;
            containerd.remove_image(&image)?;
        }
        node.keeps_nothing()
    });
}

#[test]
fn umoci_unpacks_an_image_with_the_places_of_its_store_paths() {
    test(|host| {
        host.needs("skopeo")?;
        host.needs("umoci")?;
        for (what, archive) in archives(host)? {
            let layout = host.dir().join(unique("layout"));
            let from = format!("oci-archive:{}", archive.display());
            skopeo_copy(&from, &format!("oci:{}:it", layout.display()))?;
            let bundle = host.dir().join(unique("bundle"));
            let image = format!("{}:it", layout.display());
            succeed(
                Command::new("umoci")
                    .args(["unpack", "--image", &image])
                    .arg(&bundle),
            )?;
            let root = bundle.join("rootfs");
            let place = match what {
                "per path" => host.fixture("hello")?,
                _ => host.fixture("hello-closure-info")?,
            };
            let place = root.join(place.trim_start_matches('/'));
            ensure!(place.is_dir(), "{what}: no {}", place.display());
            ensure!(
                fs::read_dir(&place)?.next().is_none(),
                "{what}: it is not empty"
            );
            ensure!(
                root.join("etc").is_dir() == (what == "with a base"),
                "{what}"
            );
            let runtime = fs::read(bundle.join("config.json"))?;
            let runtime: Value = serde_json::from_slice(&runtime)?;
            let program = format!("{}/bin/hello", host.fixture("hello")?);
            ensure!(
                runtime["process"]["args"][0] == *program,
                "{what}: {runtime:#}"
            );
        }
        Ok(())
    });
}

#[test]
fn skopeo_syncs_a_repository_to_a_directory_and_to_another_registry() {
    test(|host| {
        host.needs("skopeo")?;
        let registry = Registry::start(host, Settings::default())?;
        let name = at(registry.address());
        let hello = format!("{}/bin/hello", host.fixture("hello")?);
        let info = host.fixture("hello-closure-info")?;
        let archive = build(host, &name, &[&hello], &info, &[])?;
        succeed(push(host).arg(&archive))?;
        let expected = nameless(inspect(host, &archive)?);

        let dir = host.dir().join(unique("synced"));
        fs::create_dir(&dir)?;
        let directory = dir.to_str().context("a path that is no text")?;
        let repository = format!("{}/a", registry.address());
        let from = [
            "sync",
            "--src",
            "docker",
            "--dest",
            "dir",
            "--src-tls-verify=false",
        ];
        skopeo(&[&from[..], &[&repository, directory]].concat())?;
        let second = Registry::start(host, Settings::default())?;
        let to = [
            "sync",
            "--src",
            "dir",
            "--dest",
            "docker",
            "--dest-tls-verify=false",
        ];
        let place = second.address().to_string();
        skopeo(&[&to[..], &[directory, &place]].concat())?;

        let what = format!("docker://{}", at(second.address()));
        let synced = nameless(inspect(host, Path::new(&what))?);
        ensure!(synced == expected, "{synced:#} {expected:#}");
        Ok(())
    });
}
