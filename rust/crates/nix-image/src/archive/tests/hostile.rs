//! Archives that are damaged, or made to do harm.

use std::io::Read as _;

use proptest::{collection::vec, prelude::*};
use serde_json::json;
use tar::{EntryType, Header};

use super::*;

#[test]
fn what_is_wrong_with_an_archive_is_said() {
    let plain = plain_layer();
    let config = config_of(&[&plain]);
    let manifest = manifest_of(&config, &[&plain], media_type::LAYER);
    let index = json!([Descriptor::of(media_type::MANIFEST, &manifest)]);
    let good = layout(&index, &[&config, &manifest, &plain]);
    read_all(&good).unwrap();
    let replaced = |old: &[u8], new: &[u8]| {
        assert_eq!(old.len(), new.len());
        let at = good
            .windows(old.len())
            .position(|window| window == old)
            .unwrap();
        let mut bad = good.clone();
        bad[at..at + old.len()].copy_from_slice(new);
        bad
    };
    let without = |digest: &Digest| replaced(digest.hex().as_bytes(), &[b'0'; 64]);
    let other_layer = plain_layer()
        .iter()
        .map(|byte| byte ^ 1)
        .collect::<Vec<_>>();
    let mismatch = manifest_of(&config, &[&other_layer], media_type::LAYER);
    let foreign = manifest_of(&config, &[&plain], "application/vnd.erofs.layer.v1");
    let chart = manifest_of(&config, &[], "");
    let chart = String::from_utf8(chart)
        .unwrap()
        .replace("image.config", "chart.config")
        .into_bytes();
    let two = manifest_of(&config, &[&plain, &plain], media_type::LAYER);
    let single = |manifest: &[u8], layer: &[u8]| {
        let index = json!([Descriptor::of(media_type::MANIFEST, manifest)]);
        layout(&index, &[&config, manifest, layer])
    };
    let mut short = Descriptor::of(media_type::MANIFEST, &manifest);
    short.size -= 1;
    let mut huge = Descriptor::of(media_type::MANIFEST, &manifest);
    huge.size = u64::MAX;
    let mut known = Descriptor::of(media_type::MANIFEST, &manifest);
    known.platform = Some(Platform::host());
    let gzip_of_nothing = compressed(b"", Compression::Gzip);
    let broken = manifest_of(&config, &[&gzip_of_nothing[..12]], media_type::LAYER);

    for (name, archive, reason) in [
        ("nothing", Vec::new(), "is truncated"),
        ("text", b"hello".to_vec(), "is not a tar archive"),
        ("long text", b"hello ".repeat(200), "is not a tar archive"),
        (
            "an empty tar",
            vec![0; 1024],
            "neither `oci-layout` nor `manifest.json`",
        ),
        (
            "some tar",
            plain.clone(),
            "neither `oci-layout` nor `manifest.json`",
        ),
        (
            "an old layout",
            replaced(b"\"1.0.0\"", b"\"2.0.0\""),
            "version \"2.0.0\"",
        ),
        (
            "no index",
            replaced(b"index.json", b"index.jsoN"),
            "is not a tar archive",
        ),
        (
            "no JSON",
            replaced(b"\"manifests\":[", b"\"manifests\":{"),
            "index.json in x.tar is not valid",
        ),
        (
            "no manifest",
            without(&Digest::of(&manifest)),
            "no blob sha256",
        ),
        (
            "a damaged layer",
            replaced(&[b'x'; 3000], &[b'y'; 3000]),
            "is damaged, its digest is",
        ),
        (
            "a wrong diff ID",
            single(&mismatch, &other_layer),
            "has the diff ID",
        ),
        (
            "a cut gzip",
            single(&broken, &gzip_of_nothing[..12]),
            "cannot decompress layer sha256",
        ),
        (
            "a foreign layer",
            single(&foreign, &plain),
            "vnd.erofs.layer.v1",
        ),
        ("a chart", single(&chart, &plain), "chart.config"),
        (
            "too many layers",
            single(&two, &plain),
            "2 layers, but its config has 1 diff IDs",
        ),
        (
            "a short manifest",
            layout(&json!([short]), &[&manifest]),
            "bytes instead of",
        ),
        (
            "a huge manifest",
            layout(&json!([huge]), &[&manifest]),
            "a document may have",
        ),
        (
            "too many manifests",
            layout(&json!(vec![known; 1001]), &[]),
            "more than 1000 manifests",
        ),
        ("a parent", tar(&[("../x", b"")]), "it has a `..`"),
        (
            "a hidden parent",
            tar(&[("a/../../x", b"")]),
            "it has a `..`",
        ),
        (
            "an absolute path",
            tar(&[("/etc/passwd", b"")]),
            "it is absolute",
        ),
        (
            "no config",
            tar(&[("manifest.json", br#"[{"Config": "c", "Layers": []}]"#)]),
            "has no \"c\"",
        ),
        (
            "no list",
            tar(&[("manifest.json", b"{}")]),
            "manifest.json in x.tar is not valid",
        ),
        (
            "a huge list",
            tar(&[("manifest.json", &vec![b' '; 9 << 20])]),
            "a document may have 8388608",
        ),
    ] {
        let message = words(&read_all(&archive).unwrap_err());
        assert!(message.contains(reason), "{name} gave {message}");
        assert!(message.contains("x.tar"), "{name} gave {message}");
    }
}

#[test]
fn links_are_followed_inside_the_archive_only() {
    let plain = plain_layer();
    let config = config_of(&[&plain]);
    let list = br#"[{"Config": "c.json", "RepoTags": null, "Layers": ["b/layer.tar"]}]"#;
    for (target, fits) in [
        ("../a/layer.tar", true),
        ("../../layer.tar", false),
        ("/etc/passwd", false),
    ] {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in [
            ("manifest.json", &list[..]),
            ("c.json", &config),
            ("a/layer.tar", &plain),
        ] {
            let mut header = Header::new_gnu();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, content).unwrap();
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, "b/layer.tar", target).unwrap();
        let result = read_all(&tar.into_inner().unwrap());
        assert_eq!(result.is_ok(), fits, "{target}: {result:?}");
    }
}

#[test]
fn a_name_does_not_fill_the_memory() {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(65 << 20);
    header.set_cksum();
    tar.append(&header, std::io::repeat(b'a').take(65 << 20))
        .unwrap();
    let message = words(&open(&tar.into_inner().unwrap()).unwrap_err());
    assert!(message.contains("64 MiB of headers"), "{message}");
}

#[test]
fn a_cut_archive_is_an_error_wherever_it_is_cut() {
    let plain = tar(&[("f", b"x")]);
    let oci = written(&built("hello", None, &json!({})), None).unwrap();
    for archive in [oci, docker_archive(&[&plain], Compression::Zstd)] {
        for len in 0..archive.len() {
            assert!(
                read_all(&archive[..len]).is_err(),
                "cut at {len} of {}",
                archive.len()
            );
        }
        read_all(&archive).unwrap();
    }
}

proptest! {
    #[test]
    fn a_damaged_archive_never_panics(
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        docker: bool,
    ) {
        let plain = tar(&[("f", b"x")]);
        let mut archive = if docker {
            docker_archive(&[&plain], Compression::Gzip)
        } else {
            written(&built("hello", None, &json!({})), None).unwrap()
        };
        for (at, byte) in damage {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        let _ = read_all(&archive);
    }

    #[test]
    fn hostile_documents_never_panic(index in ".{0,200}", manifest in "\\PC{0,200}") {
        let layout_file = br#"{"imageLayoutVersion":"1.0.0"}"#;
        for index in [index, json!({"schemaVersion": 2, "manifests": [Descriptor::of(media_type::MANIFEST, manifest.as_bytes())]}).to_string()] {
            let blob = format!("{BLOBS}{}", Digest::of(manifest.as_bytes()).hex());
            let _ = read_all(&tar(&[
                (OCI_LAYOUT, layout_file),
                (INDEX, index.as_bytes()),
                (&blob, manifest.as_bytes()),
            ]));
        }
    }
}
