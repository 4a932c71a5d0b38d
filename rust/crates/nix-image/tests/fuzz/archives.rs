//! Archives: images of every kind are written down by hand and damaged at every level, the documents
//! before their digests are taken, one file under its old digest, and the whole archive at the end.

use std::io::{Cursor, Read as _, Write as _};

use fuzzing::{Corpus, Edit, message, mutate, peak_bytes};
use nix_image::{
    Compression, Descriptor, Digest, Error, ImageConfig, ImageOptions, NewImage, Platform,
    Reference,
    archive::{Archive, TarLayout, write_layout},
    layer_media_type, media_type,
};
use proptest::{collection::vec, option, prelude::*, sample::Index};
use serde_json::{Value, json};
use tar::{EntryType, Header};

pub(crate) type Bytes = Cursor<Vec<u8>>;

pub(crate) const NAME: &str = "x.tar";

/// What is allocated for an empty archive, and for each byte of another: buffers, the state of a
/// decompressor, and a document in memory, which has some 50 bytes for each of its own at worst.
const PEAK: (u64, u64) = (2 << 20, 64);

pub(crate) fn open(archive: &[u8]) -> Result<Archive<Bytes>, Error> {
    Archive::open(NAME, Cursor::new(archive.to_vec()))
}

/// Builds an image on the archive's one image, which reads all there is.
pub(crate) fn rebuild(archive: &[u8]) -> Result<Vec<u8>, Error> {
    let mut archive = open(archive)?;
    let base = archive.base(&Platform::host())?;
    let options = ImageOptions::named(Reference::parse("upper").unwrap());
    let image = NewImage::new(options, Some(base), None)?;
    let mut bytes = Vec::new();
    let mut out = TarLayout::new(&mut bytes);
    write_layout(&image, Some(&mut archive), &mut std::io::empty(), &mut out)?;
    out.finish()?;
    Ok(bytes)
}

/// Checks that an error says of which archive it is, and gives its words.
pub(crate) fn told(error: &Error) -> String {
    let told = message(error);
    assert!(told.contains(NAME), "{told}");
    told
}

/// What must be true of any bytes.
fn check(bytes: &[u8]) {
    let (rebuilt, peak) = peak_bytes(|| rebuild(bytes));
    let allowed = PEAK.0 + PEAK.1 * bytes.len() as u64;
    assert!(peak < allowed, "{peak} bytes for {}", bytes.len());
    match rebuilt {
        Ok(rebuilt) => {
            assert!(rebuilt.len() < 32_768 + 2 * bytes.len());
            check_image(&rebuilt);
            assert_eq!(rebuild(bytes).unwrap(), rebuilt, "not deterministic");
        }
        Err(error) => {
            let told = told(&error);
            assert_eq!(message(&rebuild(bytes).unwrap_err()), told);
        }
    }
    match open(bytes) {
        Ok(mut archive) => {
            for image in archive.images().to_vec() {
                for manifest in &image.manifests {
                    check_blobs(&mut archive, manifest);
                }
                if let Err(error) = archive.select(&image, &Platform::host()) {
                    told(&error);
                }
            }
        }
        Err(error) => drop(told(&error)),
    }
}

/// What is read by a descriptor is what the descriptor says.
fn check_blobs(archive: &mut Archive<Bytes>, manifest: &Descriptor) {
    match archive.image(manifest) {
        Ok(image) => {
            assert_eq!(&image.descriptor, manifest);
            assert_eq!(
                image.manifest.layers.len(),
                image.config.rootfs.diff_ids.len()
            );
            for layer in image.manifest.layers.iter().chain([&image.manifest.config]) {
                match archive.read_blob(layer) {
                    Ok(blob) => {
                        assert_eq!(Digest::of(&blob), layer.digest);
                        assert_eq!(blob.len() as u64, layer.size);
                    }
                    Err(error) => drop(told(&error)),
                }
            }
        }
        Err(error) => drop(told(&error)),
    }
}

/// Checks an archive that was written: its layers decompress to what its config says.
fn check_image(bytes: &[u8]) {
    let mut archive = open(bytes).unwrap();
    let base = archive.base(&Platform::host()).unwrap();
    let image = base.image;
    for (layer, diff_id) in image
        .manifest
        .layers
        .iter()
        .zip(&image.config.rootfs.diff_ids)
    {
        let blob = archive.read_blob(layer).unwrap();
        assert_eq!(Digest::of(&decompressed(&blob)), *diff_id, "{layer:?}");
    }
}

fn decompressed(blob: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut decoder = Compression::detect(blob).decoder(blob).unwrap();
    decoder.read_to_end(&mut plain).unwrap();
    plain
}

/// How an archive is made.
#[derive(Clone, Debug)]
struct Plan {
    docker: bool,
    nested: bool,
    /// Whether the index says for which platform the manifest is.
    with_platform: bool,
    name: Option<String>,
    layers: Vec<(Vec<u8>, u8)>,
    edits: Edits,
}

/// Damages, in the order in which they are done.
#[derive(Clone, Debug, Default)]
struct Edits {
    layer: Vec<Edit>,
    config: Vec<Edit>,
    manifest: Vec<Edit>,
    index: Vec<Edit>,
    /// Of one of the files, which keeps the name that its content had given it.
    file: Option<(Index, Edit)>,
    archive: Vec<Edit>,
}

/// Appends a file, whatever its name.
pub(crate) fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_entry_type(EntryType::Regular);
    let field = &mut header.as_old_mut().name;
    field[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

pub(crate) fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        append(&mut tar, name, content);
    }
    tar.into_inner().unwrap()
}

pub(crate) fn blob_name(blob: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(blob).hex())
}

pub(crate) fn compress(plain: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => plain.to_vec(),
        Compression::Gzip => {
            let level = flate2::Compression::fast();
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
            gzip.write_all(plain).unwrap();
            gzip.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(plain, 0).unwrap(),
    }
}

pub(crate) fn config_of(diff_ids: &[Digest]) -> Value {
    let host = Platform::host();
    json!({
        "architecture": host.architecture, "os": host.os, "variant": host.variant,
        "config": {"Env": ["A=1"], "Cmd": ["sh"]},
        "history": [{"created_by": "ADD"}],
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

/// The files of an OCI image layout with these manifests and blobs.
pub(crate) fn layout(index: Vec<u8>, blobs: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
    let mut files = vec![
        ("oci-layout".to_owned(), layout),
        ("index.json".to_owned(), index),
    ];
    files.extend(blobs.iter().map(|blob| (blob_name(blob), blob.clone())));
    files
}

fn build(plan: &Plan) -> Vec<u8> {
    let kinds = [Compression::None, Compression::Gzip, Compression::Zstd];
    let packed: Vec<_> = plan
        .layers
        .iter()
        .map(|(plain, kind)| {
            let kind = kinds[usize::from(*kind) % kinds.len()];
            (
                mutate(compress(plain, kind), &plan.edits.layer),
                layer_media_type(kind),
            )
        })
        .collect();
    let diff_ids: Vec<_> = plan
        .layers
        .iter()
        .map(|(plain, _)| Digest::of(plain))
        .collect();
    let config = mutate(
        config_of(&diff_ids).to_string().into_bytes(),
        &plan.edits.config,
    );
    let mut files = if plan.docker {
        let names: Vec<_> = (0..packed.len())
            .map(|n| format!("{n}/layer.tar"))
            .collect();
        let list = json!([{"Config": "c.json", "RepoTags": plan.name.as_slice(), "Layers": names}]);
        let list = mutate(list.to_string().into_bytes(), &plan.edits.index);
        let mut files = vec![
            ("manifest.json".to_owned(), list),
            ("c.json".to_owned(), config),
        ];
        files.extend(
            names
                .into_iter()
                .zip(packed.into_iter().map(|(blob, _)| blob)),
        );
        files
    } else {
        let layers: Vec<_> = packed
            .iter()
            .map(|(blob, kind)| Descriptor::of(kind, blob))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "config": Descriptor::of(media_type::CONFIG, &config), "layers": layers,
        });
        let manifest = mutate(manifest.to_string().into_bytes(), &plan.edits.manifest);
        let mut blobs = vec![config, manifest.clone()];
        blobs.extend(packed.into_iter().map(|(blob, _)| blob));
        let mut descriptor = Descriptor::of(media_type::MANIFEST, &manifest);
        descriptor.platform = plan.with_platform.then(Platform::host);
        if plan.nested {
            let index = json!({"schemaVersion": 2, "manifests": [descriptor]})
                .to_string()
                .into_bytes();
            descriptor = Descriptor::of(media_type::INDEX, &index);
            blobs.push(index);
        }
        if let Some(name) = &plan.name {
            let name = (nix_image::IMAGE_NAME.to_owned(), name.clone());
            descriptor.annotations.extend([name]);
        }
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        layout(
            mutate(index.to_string().into_bytes(), &plan.edits.index),
            &blobs,
        )
    };
    if let Some((index, edit)) = &plan.edits.file {
        let (_, content) = index.get_mut(&mut files);
        *content = mutate(content.split_off(0), std::slice::from_ref(edit));
    }
    mutate(tar(&files), &plan.edits.archive)
}

fn corpus() -> Corpus {
    let words = [
        "null",
        "{}",
        "[]",
        "\"",
        ",",
        "[[[[[[[[",
        "-1",
        "1e99",
        "18446744073709551615",
        "9999999999",
        "\\u0000",
        "\\ud800",
        "sha256:",
        "sha512:",
        "\"size\":0",
        "\"annotations\":{\"a\":\"b\"},",
        "\"urls\":[\"http://x\"],",
        media_type::MANIFEST,
        media_type::INDEX,
        media_type::CONFIG,
        media_type::LAYER,
        "+gzip",
        "+zstd",
        "\"platform\":{\"os\":\"linux\",\"architecture\":\"amd64\"},",
        "../",
        "/etc/passwd",
        "blobs/sha256/",
        "index.json",
        "manifest.json",
        "oci-layout",
        "0000000",
        "77777777777",
        "ustar\0",
        "ustar  ",
        "\0\0\0\0",
        "./././@LongLink",
        "30 size=99999999999999999999\n",
        "20 path=../x\n",
    ];
    crate::corpus("archive", &words)
}

fn plan() -> impl Strategy<Value = Plan> {
    let layer = prop_oneof![4 => vec(any::<u8>(), 0..200), 1 => vec(Just(b'x'), 3000..9000)];
    let kind = (any::<bool>(), any::<bool>(), any::<bool>());
    let name = option::of("[a-z]{1,9}(:[a-z]{1,3})?");
    (kind, name, vec((layer, any::<u8>()), 0..4)).prop_map(
        |((docker, nested, with_platform), name, layers)| Plan {
            docker,
            nested,
            with_platform,
            name,
            layers,
            edits: Edits::default(),
        },
    )
}

/// Damage at one or two levels: an archive that is damaged everywhere is refused by the first check.
fn damaged_plan() -> impl Strategy<Value = Plan> {
    let edits = || corpus().edits();
    // Nothing but the digest tells that one bit has changed.
    let flip = (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, bit));
    let file = (any::<Index>(), flip);
    (plan(), 0..8_u8, edits(), edits(), file).prop_map(|(mut plan, level, some, others, file)| {
        match level {
            0 => plan.edits.layer = some,
            1 => plan.edits.config = some,
            2 => (plan.edits.manifest, plan.edits.config) = (some, others),
            3 => plan.edits.index = some,
            4 => (plan.edits.index, plan.edits.manifest) = (some, others),
            5 | 6 => plan.edits.file = Some(file),
            _ => plan.edits.archive = some,
        }
        plan
    })
}

#[test]
fn the_corpus_is_read_or_refused_in_order() {
    for input in corpus().inputs() {
        check(input);
    }
}

proptest! {
    #![proptest_config(fuzzing::config())]

    #[test]
    fn an_image_is_read_as_it_was_written(plan in plan()) {
        let bytes = build(&plan);
        check(&bytes);
        let mut archive = open(&bytes).unwrap();
        let images = archive.images().to_vec();
        prop_assert_eq!(images.len(), 1);
        prop_assert_eq!(&images[0].name, &plan.name);
        let base = archive.base(&Platform::host()).unwrap();
        let config: &ImageConfig = &base.image.config;
        prop_assert_eq!(config.config.env.as_slice(), ["A=1".to_owned()]);
        prop_assert_eq!(base.image.manifest.layers.len(), plan.layers.len());
        for (layer, (plain, _)) in base.image.manifest.layers.iter().zip(&plan.layers) {
            let blob = archive.read_blob(layer).unwrap();
            prop_assert!(decompressed(&blob) == *plain);
        }
        rebuild(&bytes).unwrap();
    }

    #[test]
    fn damaged_images(plan in damaged_plan()) {
        check(&build(&plan));
    }

    #[test]
    fn mutated_archives(bytes in corpus().mutated()) {
        check(&bytes);
    }
}
