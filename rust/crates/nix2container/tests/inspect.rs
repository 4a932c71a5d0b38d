//! The program as it is called: `inspect` and `diff` of archives, without containerd and Nix.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in test functions only, not in their helpers"
)]

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Command, Output},
};

use nix_image::{Descriptor, media_type};
use serde_json::{Value, json};

const HELLO: &str = "8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-hello-1.0";
const NEWER: &str = "9kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-hello-1.1";
const INFO: &str = "akvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-closure-info";

/// A directory with a store, and archives of `HELLO` by its closure-info and of `NEWER` by name.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Self { dir };
        let store = fixture.path("store");
        for object in [HELLO, NEWER, INFO] {
            fs::create_dir_all(store.join(object)).unwrap();
        }
        let list = |object: &str| format!("{}/{object}\n", store.display());
        fs::write(store.join(INFO).join("store-paths"), list(HELLO)).unwrap();
        fs::write(fixture.path("list"), list(NEWER)).unwrap();
        fs::write(fixture.path("config"), r#"{"Cmd": ["x"], "User": "me"}"#).unwrap();
        let info = store.join(INFO).display().to_string();
        for arguments in [
            &["--closure", &info, "--config", "config", "a.tar"][..],
            &["--closure", "list", "b.tar"],
        ] {
            let build = [&["build", "--ref", "hello"], arguments].concat();
            fixture.run(&build);
        }
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Calls a command with the fixture's store.
    fn call(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nix2container"));
        command.current_dir(self.dir.path()).env("PATH", "/nowhere");
        command.args(arguments);
        if arguments.len() > 1 {
            command.arg("--store-dir").arg(self.path("store"));
        }
        command.output().unwrap()
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(arguments)).unwrap()
    }
}

#[test]
fn an_archive_is_told_in_each_format_and_compression() {
    let fixture = Fixture::new();
    let plain = fs::read(fixture.path("a.tar")).unwrap();
    let packed = zstd::encode_all(&*plain, 0).unwrap();
    fs::write(fixture.path("a.zst"), packed).unwrap();
    for archive in ["a.tar", "a.zst"] {
        let told = fixture.json(&["inspect", "--json", archive]);
        assert_eq!(told["source"], archive);
        let image = &told["images"][0];
        assert_eq!(image["names"][0], "docker.io/library/hello:latest");
        assert_eq!(image["layers"][0]["kind"], "nix-closure");
        assert_eq!(image["closure"]["is_complete"], true);
        let paths = image["closure"]["store_paths"].as_array().unwrap();
        let names: Vec<_> = paths.iter().map(|path| path["name"].clone()).collect();
        assert_eq!(names, ["hello-1.0", "closure-info"]);
        assert_eq!(paths[0]["nar_size"], Value::Null, "there is no Nix");
    }
    let told = fixture.json(&["inspect", "--json", "b.tar"]);
    assert_eq!(told["images"][0]["layers"][0]["kind"], "nix-per-path");

    fs::remove_dir_all(fixture.path("store").join(INFO)).unwrap();
    let table = fixture.run(&["inspect", "a.tar"]);
    for words in ["missing", "There are more", "user", "me", INFO] {
        assert!(table.contains(words), "{words}: {table}");
    }
}

#[test]
fn standard_input_is_an_archive() {
    let fixture = Fixture::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nix2container"));
    command.args(["inspect", "--json", "--store-dir"]);
    command.arg(fixture.path("store")).arg("-");
    command.stdin(File::open(fixture.path("a.tar")).unwrap());
    let told: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    assert_eq!(told["source"], "standard input");
    let expected = fixture.json(&["inspect", "--json", "a.tar"]);
    assert_eq!(told["images"][0]["digest"], expected["images"][0]["digest"]);
}

#[test]
fn two_archives_are_compared() {
    let fixture = Fixture::new();
    let told = fixture.json(&["diff", "--json", "a.tar", "b.tar"]);
    let paths = &told["store_paths"];
    assert_eq!(paths["changed"][0]["name"], "hello");
    assert!(
        paths["changed"][0]["b"]["path"]
            .as_str()
            .unwrap()
            .ends_with(NEWER)
    );
    assert!(
        paths["removed"][0]["path"]
            .as_str()
            .unwrap()
            .ends_with(INFO)
    );
    let fields: Vec<_> = told["config"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["field"].clone())
        .collect();
    assert_eq!(fields, ["Cmd", "User"]);

    let table = fixture.run(&["diff", "a.tar", "b.tar"]);
    for words in [
        "hello  ",
        "1.0",
        "1.1",
        "0 store paths added, 1 removed, 1 changed, 0 shared",
    ] {
        assert!(table.contains(words), "{words}: {table}");
    }
    assert!(
        fixture
            .run(&["diff", "a.tar", "a.tar"])
            .contains("the same image")
    );
}

#[test]
fn exit_codes_tell_a_failure_from_a_wrong_command_line() {
    let fixture = Fixture::new();
    for (arguments, code) in [
        (&["inspect"][..], 2),
        (&["diff", "a.tar"], 2),
        (&["inspect", "./missing"], 1),
        (&["inspect", "list"], 1),
        (&["diff", "-", "-"], 1),
        (&["diff", "a.tar", "./missing"], 1),
        (&["diff", "a.tar", "b.tar"], 0),
    ] {
        let output = fixture.call(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_small_archive_does_not_ask_for_much_memory() {
    let fixture = Fixture::new();
    let mut tar = tar::Builder::new(File::create(fixture.path("bomb")).unwrap());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).unwrap();
    };
    let mut blob = |media_type: &str, document: &Value| {
        let content = document.to_string();
        let descriptor = Descriptor::of(media_type, content.as_bytes());
        let name = format!("blobs/sha256/{}", descriptor.digest.hex());
        add(&name, content.as_bytes());
        descriptor
    };
    // One config of 7 MiB, and a hundred manifests that refer to it.
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "User": "x".repeat(7 << 20) },
        "rootfs": { "type": "layers", "diff_ids": [] },
    });
    let config = blob(media_type::CONFIG, &config);
    let manifests: Vec<_> = (0..100)
        .map(|number| {
            let manifest = json!({
                "schemaVersion": 2,
                "config": config,
                "layers": [],
                "annotations": { "number": number.to_string() },
            });
            let manifest = blob(media_type::MANIFEST, &manifest);
            let mut manifest = serde_json::to_value(manifest).unwrap();
            manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
            manifest
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    add("index.json", index.to_string().as_bytes());
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    tar.finish().unwrap();

    let output = fixture.call(&["inspect", "bomb"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("64.00 MiB together"), "{stderr}");
}
