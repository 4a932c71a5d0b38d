//! A closure of the tests' own that a container can run, as a layer in either format.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use tonic::Status;

use crate::{
    image::{Layer, NIX_CLOSURE, NIX_STORE_PATH, sha256},
    snapshots::{Labels, Mount, Preparing, Snapshots},
    store::{Object, Store},
};

/// How a layer names its closure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An annotation for each store path.
    PerPath,
    /// One annotation for a closure-info.
    ClosureInfo,
}

/// Both of them.
pub const FORMATS: [Format; 2] = [Format::PerPath, Format::ClosureInfo];

/// A program, the data that it refers to, and in one of the formats a closure-info.
#[derive(Debug)]
pub struct Closure {
    format: Format,
    /// The program, the data, and the closure-info if there is one.
    objects: Vec<Object>,
    /// The digest of the data.
    digest: String,
}

impl Closure {
    /// Builds one whose data has this many bytes, which do not compress.
    ///
    /// # Errors
    /// What Nix says.
    pub fn build(store: &Store, format: Format, bytes: usize) -> Result<Self> {
        let script = format!("$busybox head -c {bytes} /dev/urandom > $out");
        let data = store.build("data", &script, &[])?;
        let script = format!(
            "$busybox mkdir -p $out/bin; $busybox cp $busybox $out/bin/busybox; echo {data} > $out/data"
        );
        let program = store.build("program", &script, &[&data])?;
        let digest = sha256(&fs::read(data.path())?);
        let mut objects = vec![program, data];
        if format == Format::ClosureInfo {
            objects.push(store.closure_info(&[&objects[0]])?);
        }
        Ok(Self {
            format,
            objects,
            digest,
        })
    }

    /// Its store objects.
    #[must_use]
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    fn data(&self) -> &Object {
        &self.objects[1]
    }

    /// Where the program is, which is a busybox.
    #[must_use]
    pub fn program(&self) -> String {
        format!("{}/bin/busybox", self.objects[0])
    }

    /// The labels that ask a snapshotter for it.
    fn labels(&self) -> Vec<(String, String)> {
        let label = |name: String, object: &Object| (name, object.path().to_owned());
        match self.format {
            Format::ClosureInfo => vec![label(NIX_CLOSURE.to_owned(), &self.objects[2])],
            Format::PerPath => self
                .objects
                .iter()
                .enumerate()
                .map(|(index, object)| label(format!("{NIX_STORE_PATH}{index}"), object))
                .collect(),
        }
    }

    fn with_labels<T>(&self, call: impl FnOnce(Labels) -> T) -> T {
        let labels = self.labels();
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        call(&labels)
    }

    /// Makes an active snapshot of it.
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn prepare(&self, snapshots: &Snapshots, key: &str) -> Result<Vec<Mount>, Status> {
        self.with_labels(|labels| snapshots.prepare(key, "", labels))
    }

    /// Begins to, for tests that do something meanwhile.
    #[must_use]
    pub fn begin_prepare(&self, snapshots: &Snapshots, key: &str) -> Preparing {
        self.with_labels(|labels| snapshots.begin_prepare(key, "", labels))
    }

    /// A layer with the labels as annotations and with its mount points as content, which
    /// tells it from the layers of other closures: containerd knows a layer by its content
    /// alone (the chain ID).
    ///
    /// # Errors
    /// It cannot be written.
    pub fn layer(&self) -> Result<Layer> {
        let below_root = |object: &Object| object.path().trim_start_matches('/').to_owned();
        let layer = Layer::default()
            .dir("nix")?
            .dir("nix/store")?
            .dir(&below_root(&self.objects[0]))?
            .file(&below_root(self.data()), 0o444, b"")?;
        Ok(self
            .labels()
            .iter()
            .fold(layer, |layer, (name, value)| layer.annotation(name, value)))
    }

    /// The command by which a container checks its content, to the last byte. It tells by
    /// its status.
    #[must_use]
    pub fn check(&self) -> [String; 4] {
        let program = self.program();
        let line = format!("{}  {}", self.digest, self.data());
        let script = format!("echo '{line}' | {program} sha256sum -c");
        [program, "sh".to_owned(), "-c".to_owned(), script]
    }

    /// Checks that all of it is in the store, to the last byte.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn is_here(&self) -> Result<()> {
        for object in &self.objects {
            ensure!(object.exists(), "{object} is missing");
        }
        let (program, data) = (&self.objects[0], self.data());
        let named = fs::read_to_string(Path::new(program.path()).join("data"))?;
        ensure!(
            named.trim_end() == data.path(),
            "{program} has lost its data"
        );
        ensure!(
            fs::metadata(self.program())?.len() > 0,
            "{program} has lost its program"
        );
        ensure!(
            sha256(&fs::read(data.path())?) == self.digest,
            "{data} is not what was built"
        );
        Ok(())
    }
}
