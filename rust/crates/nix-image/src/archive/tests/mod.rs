//! Archives are written and read back.

mod hostile;

use std::{
    fs::File,
    io::{Cursor, Write as _},
};

use nix_store::{LayerClosure, StoreDir};
use serde_json::{Value, json};
use tar::Header;

use super::*;
use crate::{
    Base, Compression, Descriptor, Digest, Error, IMAGE_NAME, ImageOptions, Layer, LayerTree,
    NewImage, NodeKind, Platform, Reference, RuntimeConfig, annotations, layer_media_type,
    media_type,
};

type Bytes = Cursor<Vec<u8>>;

fn open(archive: &[u8]) -> Result<Archive<Bytes>, Error> {
    Archive::open("x.tar", Cursor::new(archive.to_vec()))
}

/// A message with all its causes.
fn words(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A tar archive of these files.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // Not `append_data`, which refuses what a hostile archive has.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn nix_layer(name: &str) -> (Layer, Vec<u8>) {
    let store_dir = StoreDir::default();
    let path = format!("{store_dir}/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-{name}");
    let path = store_dir.parse(&path).unwrap();
    let mut tree = LayerTree::new(&store_dir).unwrap();
    tree.add_place(&path, NodeKind::Directory).unwrap();
    let closure = LayerClosure {
        closure_info: None,
        paths: [path].into_iter().collect(),
    };
    let (gzip, mut blob) = (Compression::Gzip, Vec::new());
    let layer = Layer::pack(&tree, &closure, gzip, |path| File::open(path), &mut blob).unwrap();
    (layer, blob)
}

/// An image with the blob of its layer.
struct Built {
    image: NewImage,
    layer: Vec<u8>,
}

fn built(name: &str, base: Option<Base>, config: &Value) -> Built {
    let options = ImageOptions {
        runtime: RuntimeConfig::parse(config.to_string().as_bytes()).unwrap(),
        ..ImageOptions::named(Reference::parse(name).unwrap())
    };
    let (packed, layer) = nix_layer(name);
    let image = NewImage::new(options, base, Some(packed)).unwrap();
    Built { image, layer }
}

fn written(built: &Built, base: Option<&mut Archive<Bytes>>) -> Result<Vec<u8>, Error> {
    let mut archive = Vec::new();
    let mut out = TarLayout::new(&mut archive);
    write_layout(&built.image, base, &mut &*built.layer, &mut out)?;
    out.finish()?;
    Ok(archive)
}

/// Reads all that an archive has of its images.
fn read_all(archive: &[u8]) -> Result<(), Error> {
    let mut archive = open(archive)?;
    for image in archive.images().to_vec() {
        let descriptor = archive.select(&image, &Platform::host())?.clone();
        let image = archive.image(&descriptor)?;
        for (layer, diff_id) in image
            .manifest
            .layers
            .iter()
            .zip(image.config.rootfs.diff_ids)
        {
            archive.copy_layer(layer, diff_id, &mut std::io::sink())?;
        }
    }
    Ok(())
}

#[test]
fn an_image_is_read_as_it_was_written() {
    let image = built("hello", None, &json!({"Entrypoint": ["/bin/hello"]}));
    let bytes = written(&image, None).unwrap();
    assert_eq!(bytes, written(&image, None).unwrap());

    let mut archive = open(&bytes).unwrap();
    let listed = archive.images().to_vec();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        listed[0].name.as_deref(),
        Some("docker.io/library/hello:latest")
    );
    let stored = archive.base(&Platform::host()).unwrap().image;
    assert_eq!(stored.descriptor.digest, image.image.digest());
    assert_eq!(stored.config.platform(), Platform::host());
    assert_eq!(
        stored.config.config.entrypoint,
        Some(vec!["/bin/hello".to_owned()])
    );
    assert_eq!(stored.manifest.layers, [nix_layer("hello").0.descriptor]);
    read_all(&bytes).unwrap();
}

#[test]
fn entries_are_sorted_and_of_no_time_and_nobody() {
    let bytes = written(&built("hello", None, &json!({})), None).unwrap();
    let mut names = Vec::new();
    for entry in tar::Archive::new(&*bytes).entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!(header.mtime().unwrap(), 0);
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        names.push(entry.path().unwrap().to_str().unwrap().to_owned());
    }
    assert!(names.is_sorted(), "{names:?}");
    assert_eq!(names[..2], ["blobs/", "blobs/sha256/"]);
    assert_eq!(names[5..], ["index.json", "manifest.json", "oci-layout"]);
}

#[test]
fn a_nix_base_keeps_its_annotations_and_its_config() {
    let config = json!({"Entrypoint": ["a"], "Cmd": ["b"], "Env": ["A=1"]});
    let bytes = written(&built("lower", None, &config), None).unwrap();
    let mut lower = open(&bytes).unwrap();
    let base_image = lower.base(&Platform::host()).unwrap();
    let upper = built(
        "upper",
        Some(base_image),
        &json!({"Entrypoint": ["c"], "Env": ["B=2"]}),
    );
    let bytes = written(&upper, Some(&mut lower)).unwrap();
    read_all(&bytes).unwrap();

    let image = open(&bytes).unwrap().base(&Platform::host()).unwrap().image;
    let closures: Vec<_> = image
        .manifest
        .layers
        .iter()
        .map(|layer| {
            let labels = annotations::snapshot_labels(&layer.annotations);
            let closure = annotations::layer_closure(&StoreDir::default(), labels);
            closure.unwrap().unwrap().paths.paths()[0].name().to_owned()
        })
        .collect();
    assert_eq!(closures, ["lower", "upper"]);
    let runtime = image.config.config;
    assert_eq!(
        (runtime.entrypoint, runtime.cmd),
        (Some(vec!["c".to_owned()]), None)
    );
    assert_eq!(runtime.env, ["A=1", "B=2"]);
    assert_eq!(image.config.history.len(), 2);
}

/// A tar archive with some content.
fn plain_layer() -> Vec<u8> {
    tar(&[("etc/motd", &[b'x'; 3000])])
}

fn compressed(layer: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => layer.to_vec(),
        Compression::Gzip => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(layer).unwrap();
            gzip.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(layer, 0).unwrap(),
    }
}

fn config_of(layers: &[&[u8]]) -> Vec<u8> {
    let host = Platform::host();
    json!({
        "architecture": host.architecture, "os": host.os, "variant": host.variant,
        "created": "2020-02-02T02:02:02Z", "docker_version": "20.10",
        "config": {"Env": null, "Cmd": ["sh"], "Hostname": "x"},
        "history": [{"created_by": "ADD"}],
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| Digest::of(layer)).collect::<Vec<_>>()},
    })
    .to_string()
    .into_bytes()
}

/// What `docker save` makes of these layers.
fn docker_archive(layers: &[&[u8]], compression: Compression) -> Vec<u8> {
    let packed: Vec<_> = layers
        .iter()
        .map(|layer| compressed(layer, compression))
        .collect();
    let names: Vec<_> = (0..layers.len())
        .map(|n| format!("{n}/layer.tar"))
        .collect();
    let list = json!([{"Config": "c.json", "RepoTags": ["base:1", "base:2"], "Layers": names}])
        .to_string();
    let config = config_of(layers);
    let mut files = vec![("manifest.json", list.as_bytes()), ("c.json", &config)];
    for (name, layer) in names.iter().zip(&packed) {
        files.push((name, layer));
    }
    tar(&files)
}

/// An OCI image layout of these blobs, with an index of the given manifests.
fn layout(manifests: &Value, blobs: &[&[u8]]) -> Vec<u8> {
    let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    let names: Vec<_> = blobs
        .iter()
        .map(|blob| format!("{BLOBS}{}", Digest::of(blob).hex()))
        .collect();
    let mut files = vec![
        (OCI_LAYOUT, &br#"{"imageLayoutVersion":"1.0.0"}"#[..]),
        (INDEX, index.as_bytes()),
    ];
    for (name, blob) in names.iter().zip(blobs) {
        files.push((name, blob));
    }
    tar(&files)
}

fn manifest_of(config: &[u8], layers: &[&[u8]], layer_type: &str) -> Vec<u8> {
    json!({
        "schemaVersion": 2,
        "config": Descriptor::of(media_type::CONFIG, config),
        "layers": layers.iter().map(|layer| Descriptor::of(layer_type, layer)).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes()
}

#[test]
fn layers_of_a_base_are_taken_over_as_they_are() {
    let plain = plain_layer();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let packed = compressed(&plain, compression);
        let config = config_of(&[&plain]);
        // A Docker type that says nothing of a compression.
        let docker_type = "application/vnd.docker.image.rootfs.diff.tar";
        let manifest = manifest_of(&config, &[&packed], docker_type);
        let index = json!([Descriptor::of(media_type::MANIFEST, &manifest)]);
        let oci = layout(&index, &[&config, &manifest, &packed]);
        for archive in [oci, docker_archive(&[&plain], compression)] {
            read_all(&archive).unwrap();
            let mut archive = open(&archive).unwrap();
            let base = archive.base(&Platform::host()).unwrap();
            let upper = built("upper", Some(base), &json!({}));
            let bytes = written(&upper, Some(&mut archive)).unwrap();
            read_all(&bytes).unwrap();

            let image = open(&bytes).unwrap().base(&Platform::host()).unwrap().image;
            let expected = Descriptor::of(layer_media_type(compression), &packed);
            assert_eq!(image.manifest.layers[0], expected);
            assert_eq!(image.config.rootfs.diff_ids[0], Digest::of(&plain));
            assert_eq!(
                image.config.created.as_deref(),
                Some("2020-02-02T02:02:02Z")
            );
            assert_eq!(image.config.config.cmd, Some(vec!["sh".to_owned()]));
        }
    }
}

#[test]
fn a_base_is_one_image_by_whatever_names() {
    let host = Platform::host();
    // One image with two names.
    let archive = docker_archive(&[], Compression::None);
    open(&archive).unwrap().base(&host).unwrap();

    let manifests = [&[][..], &[&b"x"[..]]]
        .map(|layers| manifest_of(&config_of(layers), layers, media_type::LAYER));
    let configs = [config_of(&[]), config_of(&[b"x"])];
    let index = manifests
        .iter()
        .zip(["a:1", "b:2"])
        .map(|(manifest, name)| {
            let mut descriptor = Descriptor::of(media_type::MANIFEST, manifest);
            descriptor
                .annotations
                .insert(IMAGE_NAME.to_owned(), name.to_owned());
            descriptor
        });
    let index = json!(index.collect::<Vec<_>>());
    let archive = layout(
        &index,
        &[&manifests[0], &manifests[1], &configs[0], &configs[1]],
    );
    let message = words(&open(&archive).unwrap().base(&host).unwrap_err());
    assert!(
        message.contains("2 images, and a base must be one: \"a:1 b:2\""),
        "{message}"
    );
    let none = layout(&json!([]), &[]);
    assert!(open(&none).unwrap().base(&host).is_err());
}

#[test]
fn the_names_of_an_archive_are_told() {
    let names = |archive: &[u8]| -> Vec<_> {
        open(archive)
            .unwrap()
            .images()
            .iter()
            .map(|image| image.name.clone())
            .collect()
    };
    let docker = docker_archive(&[], Compression::None);
    assert_eq!(
        names(&docker),
        [Some("base:1".to_owned()), Some("base:2".to_owned())]
    );

    let config = config_of(&[]);
    let manifest = manifest_of(&config, &[], "");
    let descriptor = |annotations: Value| {
        let mut descriptor = json!(Descriptor::of(media_type::MANIFEST, &manifest));
        descriptor["annotations"] = annotations;
        descriptor
    };
    let index = json!([
        descriptor(json!({"org.opencontainers.image.ref.name": "v1"})),
        descriptor(json!({"org.opencontainers.image.ref.name": "ghcr.io/a:v1"})),
        descriptor(
            json!({"io.containerd.image.name": "b:1", "org.opencontainers.image.ref.name": "1"})
        ),
        descriptor(Value::Null),
    ]);
    let archive = layout(&index, &[&config, &manifest]);
    let expected = [
        None,
        Some("ghcr.io/a:v1".to_owned()),
        Some("b:1".to_owned()),
    ];
    assert_eq!(names(&archive), expected);
}

#[test]
fn the_manifest_for_this_machine_is_found_in_nested_indexes() {
    let host = Platform::host();
    let config = config_of(&[]);
    let manifest = manifest_of(&config, &[], "");
    let of = |platform: Value| {
        let mut descriptor = json!(Descriptor::of(media_type::MANIFEST, &manifest));
        descriptor["platform"] = platform;
        descriptor
    };
    let foreign = of(json!({"os": "linux", "architecture": "s390x-foreign"}));
    let unknown = of(json!({"os": "unknown", "architecture": "unknown"}));
    let nest = |manifests: Value| {
        let index = json!({"schemaVersion": 2, "manifests": manifests})
            .to_string()
            .into_bytes();
        let descriptor = json!([Descriptor::of(media_type::INDEX, &index)]);
        layout(&descriptor, &[&config, &manifest, &index])
    };
    read_all(&nest(json!([foreign, unknown, of(json!(host))]))).unwrap();
    // Without a platform, that of the config counts.
    read_all(&nest(json!([foreign, of(Value::Null)]))).unwrap();

    let message = words(&read_all(&nest(json!([foreign, unknown]))).unwrap_err());
    assert!(message.contains(&host.to_string()), "{message}");
    assert!(
        message.ends_with("only for linux/s390x-foreign"),
        "{message}"
    );
}
