//! What `build` can be asked for besides a closure.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    process::Stdio,
};

use nix_image::{
    Compression, Platform,
    archive::{Archive, StoredImage},
};
use serde_json::json;

use super::fixture::{Fixture, HELLO, stderr};

fn stored(archive: &Path, platform: &Platform) -> (Archive<File>, StoredImage) {
    let mut archive = Archive::open("archive", File::open(archive).unwrap()).unwrap();
    let listed = archive.images()[0].clone();
    let manifest = archive.select(&listed, platform).unwrap().clone();
    let image = archive.image(&manifest).unwrap();
    (archive, image)
}

/// What the top layer has, each path with its mode and its content or target.
fn top(archive: &Path) -> BTreeMap<String, String> {
    let (mut archive, image) = stored(archive, &Platform::host());
    let blob = archive
        .read_blob(image.manifest.layers.last().unwrap())
        .unwrap();
    let plain = Compression::detect(&blob).decoder(&*blob).unwrap();
    let mut layer = tar::Archive::new(plain);
    let entries = layer.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut what = format!("{:o}", entry.header().mode().unwrap());
        if let Some(target) = entry.link_name().unwrap() {
            what += &format!(" -> {}", target.display());
        }
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        (path, what + &content)
    });
    entries.collect()
}

#[test]
fn config_and_manifest_have_what_is_asked_for() {
    let fixture = Fixture::new();
    fs::write(
        fixture.path("labels.json"),
        json!({"Labels": {"a": "1", "b": "2"}}).to_string(),
    )
    .unwrap();
    fixture.built(&[
        "--closure",
        "list",
        "--config",
        "labels.json",
        "--ref",
        "x",
        "--platform",
        "linux/riscv64",
        "--created",
        "1767225600",
        "--label",
        "b=3",
        "--label",
        "c=4=5",
        "--annotation",
        "org.opencontainers.image.licenses=MIT",
        "--compression",
        "zstd",
        "out.tar",
    ]);
    let platform = "linux/riscv64".parse::<Platform>().unwrap();
    let (mut archive, image) = stored(&fixture.path("out.tar"), &platform);
    assert_eq!(image.config.platform(), platform);
    let created = Some("2026-01-01T00:00:00Z".to_owned());
    assert_eq!(image.config.created, created);
    assert_eq!(image.config.history[0].created, created);
    let labels: Vec<_> = image.config.config.labels.into_iter().collect();
    let expected = [("a", "1"), ("b", "3"), ("c", "4=5")];
    assert_eq!(
        labels,
        expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
    assert_eq!(
        image.manifest.annotations["org.opencontainers.image.licenses"],
        "MIT"
    );
    let layer = &image.manifest.layers[0];
    assert_eq!(
        layer.media_type,
        "application/vnd.oci.image.layer.v1.tar+zstd"
    );
    let blob = archive.read_blob(layer).unwrap();
    assert_eq!(Compression::detect(&blob), Compression::Zstd);

    // Built upon, it keeps all but what is asked for.
    fixture.built(&[
        "--from-image",
        "out.tar",
        "--closure",
        "list",
        "--ref",
        "y",
        "--platform",
        "linux/riscv64",
        "--label",
        "a=6",
        "--compression",
        "none",
        "upper.tar",
    ]);
    let (_, upper) = stored(&fixture.path("upper.tar"), &platform);
    assert_eq!(upper.config.created, created);
    assert_eq!(upper.config.config.labels["a"], "6");
    assert_eq!(upper.config.config.labels["c"], "4=5");
    let types = upper
        .manifest
        .layers
        .iter()
        .map(|layer| layer.media_type.rsplit('.').next());
    assert_eq!(types.collect::<Vec<_>>(), [Some("tar+zstd"), Some("tar")]);
    // Its base does not run here.
    let output = fixture.build(&["--from-image", "out.tar", "--ref", "y", "other.tar"]);
    assert!(
        stderr(&output).contains("linux/riscv64"),
        "{}",
        stderr(&output)
    );
    assert!(!fixture.path("other.tar").exists());
}

#[test]
fn a_directory_and_standard_output_have_what_an_archive_has() {
    let fixture = Fixture::new();
    let store = fixture.path("store").display().to_string();
    let args = ["--closure", "list", "--config", "config.json", "--ref", "x"];
    fixture.built(&[&args[..], &["out.tar"]].concat());
    let output = fixture.build(&[&args[..], &["-"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stdout == fs::read(fixture.path("out.tar")).unwrap());

    fixture.built(&[&args[..], &["--format", "directory", "out"]].concat());
    let mut archive = tar::Archive::new(File::open(fixture.path("out.tar")).unwrap());
    let mut files = 0;
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = fixture.path("out").join(entry.path().unwrap());
        if entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert!(fs::read(&path).unwrap() == content, "{path:?}");
            files += 1;
        }
    }
    // Manifest, config, layer; index, manifest.json and oci-layout.
    assert_eq!(files, 6);

    // Either can be built upon.
    for base in ["out.tar", "out"] {
        fixture.built(&["--from-image", base, "--ref", "y", &format!("{base}.upper")]);
    }
    let built = ["out.tar.upper", "out.upper"].map(|name| fs::read(fixture.path(name)).unwrap());
    assert!(built[0] == built[1]);

    // It is not mixed with what is there, and a part of it is not there.
    let names = fixture.names();
    let output = fixture.build(&[&args[..], &["--format", "directory", "out"]].concat());
    assert!(!output.status.success());
    assert!(stderr(&output).contains("not empty"), "{}", stderr(&output));
    for (args, reason) in [
        (&["--closure", "list", "-"][..], "pass --ref"),
        (
            &[
                "--closure",
                "list",
                "--ref",
                "x",
                "--format",
                "directory",
                "-",
            ],
            "standard output",
        ),
        (
            &["--closure", "list", "--format", "directory", "new"],
            "pass --ref",
        ),
        (
            &[
                "--closure",
                "list",
                "--ref",
                "x",
                "--label",
                "a=1",
                "--label",
                "a=2",
                "new",
            ],
            "a twice",
        ),
    ] {
        let output = fixture.build(args);
        assert!(!output.status.success(), "{args:?}");
        assert!(
            stderr(&output).contains(reason),
            "{args:?}: {}",
            stderr(&output)
        );
    }
    assert_eq!(fixture.names(), names);

    // Nobody reads it.
    let mut command = fixture.command(&["build", "--store-dir", &store]);
    command.args(args).arg("-").stdout(Stdio::from(
        File::options().write(true).open("/dev/full").unwrap(),
    ));
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("No space left"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_base_layout_adds_what_is_missing() {
    let fixture = Fixture::new();
    fixture.built(&[
        "--base-layout",
        "--ref",
        "x",
        "--platform",
        "linux/amd64",
        "base.tar",
    ]);
    let found = top(&fixture.path("base.tar"));
    assert_eq!(found["tmp/"], "1777");
    assert_eq!(found["root/"], "700");
    assert!(
        found["etc/passwd"].starts_with("644root:x:0:0:"),
        "{found:?}"
    );

    // What the base has, and what the trees bring, stays.
    let upper = |args: &[&str]| {
        fixture.built(&[args, &["--base-layout", "--ref", "y", "upper.tar"]].concat());
        top(&fixture.path("upper.tar"))
    };
    let found = upper(&["--from-image", "base.tar", "--platform", "linux/amd64"]);
    let store = fixture.path("store").display().to_string();
    for path in found.keys() {
        assert!(format!("{store}/").contains(&format!("/{path}")), "{path}");
    }

    let users = fixture.path("store").join(HELLO);
    fs::create_dir_all(users.join("etc")).unwrap();
    fs::create_dir_all(users.join("tmp")).unwrap();
    fs::write(users.join("etc/passwd"), "ann").unwrap();
    let found = upper(&["--copy-to-root", "root.json"]);
    assert_eq!(found["etc/passwd"], "644ann");
    assert!(found["etc/group"].contains("root:x:0:"));
    assert_eq!(found["tmp/"], "1777");
    assert!(found["bin/hello"].contains(" -> "), "{found:?}");
    let found = upper(&["--copy-to-root", "root.json", "--copy-to-root-mode", "copy"]);
    assert_eq!(found["bin/hello"], "644");
}

#[test]
fn a_base_that_is_hostile_is_refused() {
    let fixture = Fixture::new();
    let layout = |name: &str| {
        let args = [
            "--closure",
            "list",
            "--ref",
            "x",
            "--format",
            "directory",
            name,
        ];
        fixture.built(&args);
        fixture.path(name)
    };
    let refused = |name: &str, reason: &str| {
        let output = fixture.build(&["--from-image", name, "--ref", "y", "upper.tar"]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(
            stderr(&output).contains(reason),
            "{name}: {}",
            stderr(&output)
        );
        assert!(!fixture.path("upper.tar").exists(), "{name}");
    };
    let largest = |dir: &Path| {
        let blobs = fs::read_dir(dir.join("blobs/sha256")).unwrap();
        let blobs = blobs.map(|entry| entry.unwrap().path());
        blobs
            .max_by_key(|path| fs::metadata(path).unwrap().len())
            .unwrap()
    };

    let dir = layout("changed");
    File::options()
        .append(true)
        .open(largest(&dir))
        .unwrap()
        .write_all(b"x")
        .unwrap();
    refused("changed", "bytes instead of");

    let dir = layout("cut");
    fs::remove_file(largest(&dir)).unwrap();
    refused("cut", "no blob");

    let dir = layout("link");
    fs::remove_file(dir.join("index.json")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("index.json")).unwrap();
    refused("link", "leads out of");

    fs::create_dir(fixture.path("empty")).unwrap();
    refused("empty", "oci-layout");

    // A link inside is as good as a file.
    let dir = layout("inside");
    fs::rename(dir.join("index.json"), dir.join("index")).unwrap();
    std::os::unix::fs::symlink("index", dir.join("index.json")).unwrap();
    fixture.built(&["--from-image", "inside", "--ref", "y", "upper.tar"]);
}

#[test]
fn a_name_that_no_image_can_have_is_told_with_another() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("Upper+lower")).unwrap();
    for (out, reason) in [
        ("Upper+lower/x.tar", "upper-case"),
        ("a+b.tar", "'+'"),
        ("a?b.tar", "'?'"),
        ("a=b.tar", "'='"),
    ] {
        let name = format!("nix:0/nix/store/{out}");
        let output = fixture.build(&["--base-layout", "--ref", &name, out]);
        assert_eq!(output.status.code(), Some(2));
        let said = stderr(&output);
        assert!(
            said.contains(reason) && said.contains("rename"),
            "{out}: {said}"
        );
    }
    let long = format!("nix:0/{}", "a".repeat(260));
    let output = fixture.build(&["--base-layout", "--ref", &long, "x.tar"]);
    assert!(stderr(&output).contains("255"), "{}", stderr(&output));
}
