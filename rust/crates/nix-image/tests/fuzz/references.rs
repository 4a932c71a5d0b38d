//! References, compared with the regular expressions of distribution's `reference` package (0.6).

use std::sync::LazyLock;

use fuzzing::{Corpus, message, peak_bytes};
use nix_image::Reference;
use proptest::prelude::*;
use regex::Regex;

fn corpus() -> Corpus {
    let words = [
        "/",
        ":",
        "@",
        "@sha256:",
        ".",
        "_",
        "__",
        "-",
        "[::1]",
        "localhost",
        "docker.io/",
        "index.docker.io/",
        "library/",
        "A",
        "ä",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ":latest",
        "nix:0/",
    ];
    crate::corpus("reference", &words)
}

/// Domain, path, tag and digest.
static PARTS: LazyLock<Regex> = LazyLock::new(|| {
    let label = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
    let host = format!(r"(?:{label}(?:\.{label})*|\[[a-fA-F0-9:]+\])");
    let component = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*";
    let (tag, digest) = ("[0-9A-Za-z_][0-9A-Za-z_.-]{0,127}", "sha256:[0-9a-f]{64}");
    let name = format!("(?<name>{host}(?::[0-9]+)?/(?<path>{component}(?:/{component})*))");
    Regex::new(&format!(
        r"\A{name}(?::(?<tag>{tag}))?(?:@(?<digest>{digest}))?\z"
    ))
    .unwrap()
});

/// What `ParseDockerRef` makes of a text: the name under which containerd keeps an image.
fn expected(text: &str) -> Option<String> {
    let is_hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    if text.len() == 64 && text.chars().all(is_hex) {
        return None;
    }
    let (domain, rest) = match text.split_once('/') {
        Some(("index.docker.io", rest)) => ("docker.io", rest),
        Some((domain, rest))
            if domain == "localhost"
                || domain.contains(['.', ':'])
                || domain.to_lowercase() != domain =>
        {
            (domain, rest)
        }
        _ => ("docker.io", text),
    };
    let library = match domain == "docker.io" && !rest.contains('/') {
        true => "library/",
        false => "",
    };
    let whole = format!("{domain}/{library}{rest}");
    let parts = PARTS.captures(&whole)?;
    let name = &parts["name"];
    if name.len() > 255 {
        return None;
    }
    let tag = parts.name("tag").map_or("latest", |tag| tag.as_str());
    Some(match parts.name("digest") {
        Some(digest) => format!("{name}@{}", digest.as_str()),
        None => format!("{name}:{tag}"),
    })
}

fn check(text: &str) {
    let (parsed, peak) = peak_bytes(|| Reference::parse(text));
    let shown = parsed.as_ref().map(ToString::to_string);
    assert_eq!(shown.ok(), expected(text), "{text:?}: {parsed:?}");
    match parsed {
        Ok(reference) => {
            let whole = reference.to_string();
            assert_eq!(Reference::parse(&whole).unwrap(), reference);
            let familiar = reference.familiar();
            assert_eq!(
                Reference::parse(&familiar).unwrap(),
                reference,
                "{familiar}"
            );
            assert_eq!(reference.is_digest(), whole.contains('@'));
            assert!(whole.ends_with(&reference.ref_name()));
        }
        Err(error) => {
            let told = message(&error);
            assert!(told.contains(&crate::shown(text, 200)), "{told}: {text:?}");
        }
    }
    assert!(
        peak < 16_000 + 4 * text.len() as u64,
        "{peak} bytes for {}",
        text.len()
    );
}

#[test]
fn the_corpus_is_read_as_distribution_reads_it() {
    for input in corpus().inputs() {
        check(&String::from_utf8_lossy(input));
    }
}

proptest! {
    #![proptest_config(fuzzing::config())]

    #[test]
    fn mutated_references(text in corpus().mutated_text()) {
        check(&text);
    }

    #[test]
    fn references_with_every_kind_of_part(
        domain in prop_oneof![
            3 => "",
            3 => "(localhost|[a-zA-Z0-9.-]{1,9}|\\[[0-9a-f:]{0,5}\\]?)(:[0-9]{0,3})?/",
            1 => "(index\\.)?docker\\.io/",
            1 => "\\PC{1,5}/",
        ],
        path in prop_oneof![8 => "[a-z0-9]{1,9}([._/-]{1,2}[a-z0-9]{1,5}){0,3}", 1 => "[a-zA-Z0-9._/-]{0,9}", 1 => "[a-f0-9]{64}"],
        tag in prop_oneof![3 => "", 3 => ":[a-zA-Z0-9_.-]{0,6}", 1 => ":[a-z]{126,130}"],
        digest in prop_oneof![6 => "", 2 => "@sha256:[0-9a-f]{64}", 1 => "@[a-z0-9:]{1,9}"],
    ) {
        check(&format!("{domain}{path}{tag}{digest}"));
    }
}
