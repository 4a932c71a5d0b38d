//! A store of a few paths, and the program called on it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use nix_image::{Platform, annotations, archive::Archive};

pub(crate) const HELLO: &str = "8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-hello";
pub(crate) const DATA: &str = "9kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-data.txt";
pub(crate) const INFO: &str = "akvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-closure-info";

/// A directory with a store, an image config and whatever a test adds.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Self { dir };
        let store = fixture.path("store");
        fs::create_dir_all(store.join(HELLO).join("bin")).unwrap();
        fs::write(store.join(HELLO).join("bin/hello"), "").unwrap();
        fs::write(store.join(DATA), "").unwrap();
        fs::create_dir(store.join(INFO)).unwrap();
        let list = format!("{0}/{DATA}\n{0}/{HELLO}\n", store.display());
        fs::write(store.join(INFO).join("store-paths"), &list).unwrap();
        fs::write(fixture.path("list"), &list).unwrap();
        fs::write(
            fixture.path("root.json"),
            format!("[\"{}/{HELLO}\"]", store.display()),
        )
        .unwrap();
        fs::write(
            fixture.path("config.json"),
            r#"{"entrypoint": ["/bin/hello"]}"#,
        )
        .unwrap();
        fixture
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nix2container"));
        command.current_dir(self.dir.path()).args(args);
        command
            .env_remove("CONTAINERD_ADDRESS")
            .env_remove("CONTAINERD_NAMESPACE")
            .env_remove("CONTAINERD_SNAPSHOTTER");
        command
    }

    /// `build` with the fixture's store.
    pub(crate) fn build(&self, args: &[&str]) -> Output {
        let store = self.path("store");
        let mut command = self.command(&["build", "--store-dir"]);
        command.arg(store).args(args).output().unwrap()
    }

    pub(crate) fn built(&self, args: &[&str]) {
        let output = self.build(args);
        assert!(output.status.success(), "{}", stderr(&output));
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What is read of an image.
pub(crate) struct Read {
    pub(crate) name: String,
    /// The closure as its top layer names it.
    pub(crate) closure: Vec<String>,
    /// The mount points in that layer.
    pub(crate) places: Vec<String>,
    pub(crate) entrypoint: Vec<String>,
}

pub(crate) fn read(archive: &Path) -> Read {
    let mut archive = Archive::open("archive", File::open(archive).unwrap()).unwrap();
    let listed = archive.images()[0].clone();
    let manifest = archive.select(&listed, &Platform::host()).unwrap().clone();
    let image = archive.image(&manifest).unwrap();
    let closures = image.manifest.layers.iter().flat_map(|layer| {
        let labels = annotations::snapshot_labels(&layer.annotations);
        let paths = labels.filter(|(label, _)| *label != annotations::NIX_LAYER);
        paths
            .map(|(_, path)| path.rsplit('/').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    });
    let closure = closures.collect();
    let top = image.manifest.layers.last().unwrap();
    let content = archive.read_blob(top).unwrap();
    let mut layer = tar::Archive::new(flate2::read::GzDecoder::new(&*content));
    let places = layer.entries().unwrap().filter_map(|entry| {
        let entry = entry.unwrap();
        let path = entry.path().unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        name.contains('-').then(|| name.to_owned())
    });
    Read {
        name: listed.name.unwrap(),
        closure,
        places: places.collect(),
        entrypoint: image.config.config.entrypoint.unwrap(),
    }
}
