//! Images written by hand, so that `nix-image` is not its own witness.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    path::Path,
};

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Marks a Nix layer.
pub const NIX_LAYER: &str = "containerd.io/snapshot/nix-layer";

/// Begins the annotations that name one store path each.
pub const NIX_STORE_PATH: &str = "containerd.io/snapshot/nix-store-path.";

/// Names a closure-info.
pub const NIX_CLOSURE: &str = "containerd.io/snapshot/nix-closure";

/// The chain ID that a snapshot is going to be committed under.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// This machine's architecture in OCI's words.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A layer in the making.
pub struct Layer {
    tar: Builder<Vec<u8>>,
    annotations: BTreeMap<String, String>,
}

impl Default for Layer {
    fn default() -> Self {
        Self {
            tar: Builder::new(Vec::new()),
            annotations: BTreeMap::new(),
        }
    }
}

impl Layer {
    /// A Nix layer as the Go project builds it: a directory for each store path, an
    /// empty file where the path is one or, links being followed, leads to one, and
    /// numbered annotations in the order of the list.
    ///
    /// # Errors
    /// A path does not exist.
    pub fn per_path(paths: &[&str]) -> Result<Self> {
        let mut layer = Self::default().dir("nix")?.dir("nix/store")?;
        for path in paths {
            let name = path.trim_start_matches('/');
            layer = match fs::metadata(path)?.is_dir() {
                true => layer.dir(name)?,
                false => layer.file(name, 0o555, b"")?,
            };
        }
        layer = layer.annotation(NIX_LAYER, "true");
        for (index, path) in paths.iter().enumerate() {
            layer = layer.annotation(&format!("{NIX_STORE_PATH}{index}"), path);
        }
        Ok(layer)
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// The name is too long.
    pub fn dir(self, name: &str) -> Result<Self> {
        self.entry(name, EntryType::Directory, 0o755, b"")
    }

    /// Adds a regular file.
    ///
    /// # Errors
    /// The name is too long.
    pub fn file(self, name: &str, mode: u32, content: &[u8]) -> Result<Self> {
        self.entry(name, EntryType::Regular, mode, content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// A name is too long.
    pub fn link(mut self, name: &str, target: &str) -> Result<Self> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        self.tar.append_link(&mut header, name, target)?;
        Ok(self)
    }

    fn entry(mut self, name: &str, kind: EntryType, mode: u32, content: &[u8]) -> Result<Self> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, name, content)?;
        Ok(self)
    }

    /// Adds an annotation to the layer's descriptor.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// An image in the making.
pub struct Image {
    reference: String,
    architecture: String,
    config: Value,
    layers: Vec<Layer>,
}

impl Image {
    /// An image without layers, under a full reference.
    #[must_use]
    pub fn new(reference: &str) -> Self {
        Self {
            reference: reference.to_owned(),
            architecture: architecture().to_owned(),
            config: json!({}),
            layers: Vec::new(),
        }
    }

    /// Has it be for another processor.
    #[must_use]
    pub fn architecture(mut self, architecture: &str) -> Self {
        architecture.clone_into(&mut self.architecture);
        self
    }

    /// Adds a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// What a container runs.
    #[must_use]
    pub fn entrypoint(self, words: &[&str]) -> Self {
        self.setting("Entrypoint", json!(words))
    }

    /// Sets a field of the config that containers are made from.
    #[must_use]
    pub fn setting(mut self, name: &str, value: Value) -> Self {
        self.config[name] = value;
        self
    }

    /// Writes an OCI archive.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(self, archive: &Path) -> Result<()> {
        let mut blobs = Blobs::default();
        let reference = self.reference.clone();
        let manifest = self.manifest(&mut blobs)?;
        blobs.write(archive, &reference, vec![manifest])
    }

    /// Writes an OCI archive of one image for several platforms, under the name of the first.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_all(images: Vec<Self>, archive: &Path) -> Result<()> {
        let mut blobs = Blobs::default();
        let mut manifests = Vec::new();
        let reference = images.first().map(|image| image.reference.clone());
        for image in images {
            let platform = json!({ "architecture": image.architecture, "os": "linux" });
            let mut manifest = image.manifest(&mut blobs)?;
            manifest["platform"] = platform;
            manifests.push(manifest);
        }
        let index = index(&manifests);
        let index = blobs.add_json(INDEX, &index);
        blobs.write(archive, &reference.unwrap_or_default(), vec![index])
    }

    /// Writes an OCI archive of one image for several platforms whose manifests `index.json` lists
    /// itself, each under the name of the first.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_flat(images: Vec<Self>, archive: &Path) -> Result<()> {
        let mut blobs = Blobs::default();
        let reference = images.first().map(|image| image.reference.clone());
        let mut manifests = Vec::new();
        for image in images {
            manifests.push(image.manifest(&mut blobs)?);
        }
        blobs.write(archive, &reference.unwrap_or_default(), manifests)
    }

    /// Keeps its blobs and gives the descriptor of its manifest.
    fn manifest(self, blobs: &mut Blobs) -> Result<Value> {
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for layer in self.layers {
            let mut descriptor = blobs.add(
                "application/vnd.oci.image.layer.v1.tar",
                layer.tar.into_inner()?,
            );
            diff_ids.push(descriptor["digest"].clone());
            if !layer.annotations.is_empty() {
                descriptor["annotations"] = json!(layer.annotations);
            }
            layers.push(descriptor);
        }
        let config = blobs.add_json(
            "application/vnd.oci.image.config.v1+json",
            &json!({
                "architecture": self.architecture,
                "os": "linux",
                "config": self.config,
                "rootfs": { "type": "layers", "diff_ids": diff_ids },
            }),
        );
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        Ok(blobs.add_json(
            media_type,
            &json!({
                "schemaVersion": 2,
                "mediaType": media_type,
                "config": config,
                "layers": layers,
            }),
        ))
    }
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn index(manifests: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests })
}

/// Writes files by name into a tar.
///
/// # Errors
/// The archive cannot be written.
pub fn write_tar(archive: &Path, files: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let mut tar = Builder::new(File::create(archive)?);
    for (name, content) in files {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, &content[..])?;
    }
    Ok(tar.finish()?)
}

/// Reads all regular files of a tar by name.
///
/// # Errors
/// It is no tar.
pub fn read_tar(archive: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(File::open(archive)?).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content)?;
            files.insert(entry.path()?.to_string_lossy().into_owned(), content);
        }
    }
    Ok(files)
}

#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Keeps a blob and gives its descriptor.
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let hex = sha256(&content);
        let descriptor = json!({
            "mediaType": media_type,
            "digest": format!("sha256:{hex}"),
            "size": content.len(),
        });
        self.0.insert(format!("blobs/sha256/{hex}"), content);
        descriptor
    }

    fn add_json(&mut self, media_type: &str, document: &Value) -> Value {
        self.add(media_type, document.to_string().into_bytes())
    }

    /// Writes them as an archive whose one image has these roots.
    fn write(self, archive: &Path, reference: &str, mut roots: Vec<Value>) -> Result<()> {
        let tag = reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        for root in &mut roots {
            root["annotations"] = json!({
                "io.containerd.image.name": reference,
                "org.opencontainers.image.ref.name": tag,
            });
        }
        let mut files = self.0;
        files.insert(
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        );
        let index = index(&roots).to_string().into_bytes();
        files.insert("index.json".to_owned(), index);
        write_tar(archive, &files)
    }
}

/// A SHA-256 in hexadecimal.
#[must_use]
pub fn sha256(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .fold(String::new(), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}
