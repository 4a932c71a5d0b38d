//! Small archives that stand for something large, or say so.

use fuzzing::peak_bytes;
use nix_image::{Compression, Descriptor, Digest, Platform, media_type};
use serde_json::{Value, json};

use crate::archives::{compress, config_of, layout, rebuild, tar, told};

/// What may be allocated for an archive: some times its size, and buffers.
fn check(name: &str, archive: &[u8]) -> Result<(), String> {
    let (result, peak) = peak_bytes(|| rebuild(archive));
    let allowed = (4 << 20) + 16 * archive.len() as u64;
    assert!(peak < allowed, "{name}: {peak} bytes for {}", archive.len());
    result.map(drop).map_err(|error| told(&error))
}

fn docker(list: &Value, others: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut files = vec![("manifest.json".to_owned(), list.to_string().into_bytes())];
    files.extend(
        others
            .iter()
            .map(|(name, content)| ((*name).to_owned(), content.clone())),
    );
    tar(&files)
}

fn config(diff_ids: &[Digest]) -> Vec<u8> {
    config_of(diff_ids).to_string().into_bytes()
}

/// An image layout of one manifest, which has this config and these layers.
fn image(config: Vec<u8>, layers: &[Descriptor], blobs: Vec<Vec<u8>>) -> Vec<u8> {
    let manifest = json!({"schemaVersion": 2, "config": Descriptor::of(media_type::CONFIG, &config), "layers": layers});
    let manifest = manifest.to_string().into_bytes();
    let index =
        json!({"schemaVersion": 2, "manifests": [Descriptor::of(media_type::MANIFEST, &manifest)]});
    let mut all = vec![config, manifest];
    all.extend(blobs);
    tar(&layout(index.to_string().into_bytes(), &all))
}

#[test]
fn a_layer_is_never_decompressed_into_memory() {
    let plain = vec![0; 12 << 20];
    for compression in [Compression::Gzip, Compression::Zstd] {
        let packed = compress(&plain, compression);
        let layer = Descriptor::of(media_type::LAYER, &packed);
        let archive = image(config(&[Digest::of(&plain)]), &[layer], vec![packed]);
        assert!(archive.len() < 1 << 20);
        check("a layer of zeros", &archive).unwrap();
    }
}

#[test]
fn a_blob_has_the_size_that_is_said() {
    let blob = b"layer".to_vec();
    for size in [0, 4, 6, 1 << 40, u64::MAX] {
        let mut layer = Descriptor::of(media_type::LAYER, &blob);
        layer.size = size;
        let archive = image(config(&[Digest::of(&blob)]), &[layer], vec![blob.clone()]);
        let told = check("a layer of another size", &archive).unwrap_err();
        assert!(told.contains("bytes instead of"), "{told}");
    }
}

#[test]
fn layers_that_are_named_again_and_again_do_not_add_up() {
    let names = vec!["l"; 1_000_000];
    let list = json!([{"Config": "c", "Layers": names}]);
    let archive = docker(&list, &[("c", config(&[])), ("l", b"x".to_vec())]);
    check("a million layers", &archive).unwrap_err();

    let entry = json!({"Config": "c", "Layers": vec!["l"; 1000]});
    let archive = docker(
        &json!(vec![entry; 1000]),
        &[("c", config(&[])), ("l", b"x".to_vec())],
    );
    check("a thousand times a thousand layers", &archive).unwrap_err();
}

#[test]
fn names_that_are_many_are_refused_before_they_are_compared() {
    let tags: Vec<_> = (0..300_000).map(|n| format!("a:{n}")).collect();
    let list = json!([{"Config": "c", "RepoTags": tags, "Layers": []}]);
    let archive = docker(&list, &[("c", config(&[]))]);
    check("many names", &archive).unwrap_err();
}

#[test]
fn indexes_in_indexes() {
    let manifest = json!({"schemaVersion": 2}).to_string().into_bytes();
    let mut blobs = vec![manifest.clone()];
    let mut descriptor = Descriptor::of(media_type::MANIFEST, &manifest);
    descriptor.platform = Some(Platform::host());
    for _ in 0..2000 {
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]})
            .to_string()
            .into_bytes();
        descriptor = Descriptor::of(media_type::INDEX, &index);
        blobs.push(index);
    }
    let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
    let archive = tar(&layout(index.to_string().into_bytes(), &blobs));
    let told = check("2000 levels", &archive).unwrap_err();
    assert!(told.contains("nested more than 16 deep"), "{told}");
}

#[test]
fn messages_about_long_words_are_short() {
    let long = "y".repeat(1 << 20);
    let long = long.as_str();
    let rootfs = |diff_ids: Value| json!({"type": "layers", "diff_ids": diff_ids});
    let of_config = |config: Value| image(config.to_string().into_bytes(), &[], Vec::new());
    let of_layer = |layer: Descriptor| image(config(&[]), &[layer], Vec::new());
    let of_list = |list: Value| {
        docker(
            &list,
            &[("c", config(&[])), ("d", config(&[Digest::of(b"")]))],
        )
    };
    let mut annotated = Descriptor::of(media_type::LAYER, b"x");
    annotated
        .annotations
        .insert(long.to_owned(), long.to_owned());
    let version = json!({"imageLayoutVersion": long}).to_string();
    for (name, archive) in [
        (
            "a platform",
            of_config(json!({"os": long, "architecture": long, "rootfs": rootfs(json!([]))})),
        ),
        (
            "a string for a number",
            of_config(json!({"config": {"StopTimeout": long}})),
        ),
        (
            "a string for a list",
            of_config(json!({"rootfs": rootfs(json!(long))})),
        ),
        (
            "a string for a digest",
            of_config(json!({"rootfs": rootfs(json!([long]))})),
        ),
        ("a media type", of_layer(Descriptor::of(long, b"x"))),
        ("an annotation", of_layer(annotated)),
        (
            "a version",
            tar(&[("oci-layout".to_owned(), version.into_bytes())]),
        ),
        (
            "a config's name",
            of_list(json!([{"Config": long, "Layers": []}])),
        ),
        (
            "a layer's name",
            of_list(json!([{"Config": "c", "Layers": [long]}])),
        ),
        (
            "the names of two images",
            of_list(json!([
                {"Config": "c", "RepoTags": [long, "b"], "Layers": []},
                {"Config": "d", "RepoTags": ["c"], "Layers": []},
            ])),
        ),
    ] {
        assert!(check(name, &archive).is_err(), "{name}");
    }
}
