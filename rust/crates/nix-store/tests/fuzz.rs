//! Store paths, store directories and closures as strangers write them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path},
    sync::LazyLock,
};

use fuzzing::{Corpus, message, peak_bytes};
use nix_store::{Closure, Error, StoreDir, StorePath};
use proptest::{collection::vec, prelude::*};
use regex::Regex;

fn corpus(target: &str, words: &[&str]) -> Corpus {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    Corpus::read(&dir.join(target), words)
}

fn store_paths() -> Corpus {
    let words = [
        "/",
        "..",
        "/../",
        "-",
        ".",
        "\0",
        "\n",
        "ä",
        "%2f",
        "/nix/store",
        "/nix/store/",
        "8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr",
    ];
    corpus("store-path", &words)
}

/// Nix's rule as a regular expression (`libstore/path.cc`, `path-regex.hh`, 2.26), without the two
/// names that it lists beside it.
static STORE_PATH: LazyLock<Regex> = LazyLock::new(|| {
    let hash = "[0-9abcdfghijklmnpqrsvwxyz]{32}";
    let name = r"[0-9a-zA-Z+\-._?=]{1,211}";
    Regex::new(&format!(r"\A/nix/store/{hash}-(?<name>{name})\z")).unwrap()
});

fn is_store_path(text: &str) -> bool {
    STORE_PATH.captures(text).is_some_and(|found| {
        let name = &found["name"];
        name != "." && name != ".." && !name.starts_with(".-") && !name.starts_with("..-")
    })
}

/// One file name directly below the store.
fn check_inside(store_dir: &StoreDir, path: &StorePath) {
    assert_eq!(
        path.as_path().parent(),
        Some(Path::new(store_dir.as_str())),
        "{path}"
    );
    let mut components = Path::new(path.base_name()).components();
    assert!(matches!(components.next(), Some(Component::Normal(_))));
    assert_eq!(components.next(), None, "{path}");
    assert!(!path.as_str().contains(['\0', '\n']), "{path:?}");
    assert!(path.base_name().ends_with(&format!("-{}", path.name())));
}

fn check_store_path(text: &str) {
    let store_dir = StoreDir::default();
    let (parsed, peak) = peak_bytes(|| store_dir.parse(text));
    assert_eq!(parsed.is_ok(), is_store_path(text), "{text:?}: {parsed:?}");
    match parsed {
        Ok(path) => {
            assert_eq!(path.as_str(), text);
            assert_eq!(store_dir.parse(&path.to_string()).unwrap(), path);
            check_inside(&store_dir, &path);
        }
        Err(error) => {
            let told = message(&error);
            let beginning: String = text.chars().take(300).collect();
            let beginning = format!("{beginning:?}");
            assert!(
                told.contains(beginning.trim_matches('"')),
                "{told} does not say of what: {text:?}"
            );
        }
    }
    assert!(
        peak < 16_000 + 2 * text.len() as u64,
        "{peak} bytes for {text:?}"
    );
}

fn check_store_dir(text: &str) {
    let absolute = text.starts_with('/')
        && text
            .split('/')
            .skip(1)
            .all(|part| !matches!(part, "" | "." | ".."))
        && !text.chars().any(char::is_control);
    let dir = StoreDir::new(text);
    assert_eq!(dir.is_ok(), absolute, "{text:?}");
    match dir {
        Ok(dir) => {
            assert_eq!(dir.to_string(), text);
            let path = dir
                .parse(&format!("{text}/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-a"))
                .unwrap();
            check_inside(&dir, &path);
        }
        Err(error) => drop(message(&error)),
    }
}

fn check_closure(list: &str) {
    let store_dir = StoreDir::default();
    let (parsed, peak) = peak_bytes(|| Closure::parse_list(&store_dir, list));
    let lines: Vec<_> = list.split('\n').filter(|line| !line.is_empty()).collect();
    match parsed {
        Ok(closure) => {
            let expected: BTreeSet<_> = lines.iter().copied().collect();
            let paths: Vec<_> = closure.paths().iter().map(StorePath::as_str).collect();
            assert!(
                paths.iter().copied().eq(expected),
                "{paths:?} from {list:?}"
            );
            let again = paths.join("\n");
            assert_eq!(Closure::parse_list(&store_dir, &again).unwrap(), closure);
            for path in closure {
                check_inside(&store_dir, &path);
            }
        }
        Err(error) => {
            let told = message(&error);
            let wrong = lines.iter().find(|line| !is_store_path(line));
            let wrong = wrong.unwrap_or_else(|| panic!("{told}, and all is well in {list:?}"));
            let beginning: String = wrong.chars().take(20).collect();
            assert!(
                told.contains(format!("{beginning:?}").trim_matches('"')),
                "{told}"
            );
        }
    }
    // A path has at least 45 bytes with its end of line, and comes to some 100 in memory.
    assert!(
        peak < 16_000 + 4 * list.len() as u64,
        "{peak} bytes for {}",
        list.len()
    );
}

/// What the file `store-paths` of a closure-info says is taken as text of the same content is.
fn check_closure_info(content: &[u8]) {
    let store = tempfile::tempdir().unwrap();
    let dir = store.path().to_str().unwrap();
    let store_dir = StoreDir::new(dir).unwrap();
    let info = format!("{dir}/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-closure-info");
    let info = store_dir.parse(&info).unwrap();
    fs::create_dir(info.as_path()).unwrap();
    fs::write(info.as_path().join("store-paths"), content).unwrap();
    let read = Closure::read_closure_info(&store_dir, &info);
    match std::str::from_utf8(content) {
        Ok(list) => {
            let parsed = Closure::parse_list(&store_dir, list);
            assert_eq!(read.is_ok(), parsed.is_ok());
            assert_eq!(read.ok(), parsed.ok());
        }
        Err(_) => {
            let error = read.unwrap_err();
            assert!(matches!(error, Error::ReadClosureInfo { .. }), "{error}");
            assert!(message(&error).contains(info.as_str()));
        }
    }
}

#[test]
fn the_corpus_is_read_as_the_rules_say() {
    for input in store_paths().inputs() {
        check_store_path(&String::from_utf8_lossy(input));
    }
    for input in corpus("store-dir", &[]).inputs() {
        check_store_dir(&String::from_utf8_lossy(input));
    }
    for input in corpus("closure", &[]).inputs() {
        check_closure(&String::from_utf8_lossy(input));
        check_closure_info(input);
    }
}

/// Lists of store paths, some of them more than once.
fn list() -> impl Strategy<Value = String> {
    let path = r"/nix/store/[0-3a-d]{32}-(\.{0,3}|[a-z?=+_-]{1,3})[a-z.-]{0,9}";
    let line = prop_oneof![9 => path, 1 => ""];
    let end = prop_oneof![20 => Just("\n"), 5 => Just("\n\n"), 1 => Just("\r\n")];
    vec((line, end), 0..40).prop_map(|lines| {
        let mut list = String::new();
        for (line, end) in &lines {
            list += line;
            list += end;
        }
        // The first ones again.
        for (line, end) in lines.iter().take(3) {
            list += line;
            list += end;
        }
        list
    })
}

proptest! {
    #![proptest_config(fuzzing::config())]

    #[test]
    fn mutated_store_paths(text in store_paths().mutated_text()) {
        check_store_path(&text);
    }

    #[test]
    fn store_paths_with_every_kind_of_part(
        dir in prop_oneof![9 => Just("/nix/store/"), 1 => Just("/nix/store"), 1 => Just("/nix/store//")],
        hash in prop_oneof![9 => "[0-9a-df-np-sv-z]{32}", 1 => "[0-9a-z]{32}", 1 => "[0-9a-d]{30,34}"],
        dash in prop_oneof![9 => Just("-"), 1 => Just("."), 1 => Just("")],
        name in prop_oneof!["[a-zA-Z0-9+._?=-]{1,8}", "[.]{0,3}-?[a-z.]{0,3}", "[a-z]{205,215}", "\\PC{1,9}"],
    ) {
        check_store_path(&format!("{dir}{hash}{dash}{name}"));
    }

    #[test]
    fn mutated_store_directories(
        text in corpus("store-dir", &["/", "..", ".", "\0", "\u{7f}", "\u{85}", "//"]).mutated_text(),
    ) {
        check_store_dir(&text);
    }

    #[test]
    fn mutated_closures(content in corpus("closure", &["\n", "\r", "/nix/store/", "\0", "..", "/"]).mutated()) {
        check_closure(&String::from_utf8_lossy(&content));
        check_closure_info(&content);
    }

    #[test]
    fn lists_of_store_paths(list in list()) {
        check_closure(&list);
    }
}
