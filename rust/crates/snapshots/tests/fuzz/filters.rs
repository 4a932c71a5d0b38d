//! Filters as clients of containerd write them, on a store of a few snapshots.
//!
//! Filters that are made from a known meaning are compared with a naive evaluation of that meaning.
//! Of filters that chance has made, the grammar is checked by a regular expression, and the meaning
//! by what holds for any two of them: a comma joins them by "and", a list by "or".

use std::{collections::BTreeSet, ops::ControlFlow, path::Path, sync::LazyLock, time::SystemTime};

use fuzzing::{Corpus, message, peak_bytes};
use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};
use regex::Regex;
use snapshots::{Code, Error, Info, Kind, Labels, Options, Snapshotter};

/// Most bytes that filters may take while they are compiled and evaluated.
const MAX_PEAK: u64 = 48 << 20;

/// Names of snapshots, and values of their labels.
const NAMES: [&str; 7] = [
    "plain",
    "k8s.io/12/extract-123-AbC_ sha256:51c0",
    "k8s.io/1/\"quoted\"|/\\",
    "ä,ö\u{85}\u{3000}",
    "a==b",
    "new\nline\t\u{1}",
    "sha256:2fce",
];

/// Names of labels.
const LABELS: [&str; 6] = [
    "l",
    "containerd.io/snapshot.ref",
    "a.b.c",
    "",
    "ключ",
    "\"\\\n",
];

fn snapshots() -> Vec<Info> {
    let kinds = [Kind::Committed, Kind::Active, Kind::View];
    let mut infos: Vec<Info> = Vec::new();
    for (n, name) in NAMES.iter().enumerate() {
        let mut labels = Labels::new();
        for (m, label) in LABELS.iter().enumerate().take(n) {
            labels.insert((*label).to_owned(), NAMES[(n + m) % NAMES.len()].to_owned());
        }
        let parents = infos.iter().filter(|info| info.kind == Kind::Committed);
        let parent = parents.map(|info| info.name.clone()).next_back();
        infos.push(Info {
            name: (*name).to_owned(),
            parent: parent.unwrap_or_default(),
            kind: kinds[n % kinds.len()],
            created: SystemTime::UNIX_EPOCH,
            updated: SystemTime::UNIX_EPOCH,
            labels,
        });
    }
    infos
}

/// A store that has [`snapshots`].
fn with_store<T>(run: impl FnOnce(&Snapshotter) -> T) -> T {
    let root = tempfile::tempdir().unwrap();
    let store = Snapshotter::open(root.path(), &Options::default()).unwrap();
    for info in snapshots() {
        let kind = match info.kind {
            Kind::Committed => Kind::Active,
            other => other,
        };
        let parent = (!info.parent.is_empty()).then_some(info.parent.as_str());
        let key = format!("{} in the making", info.name);
        let key = if info.kind == Kind::Committed {
            &key
        } else {
            &info.name
        };
        let made = store.create(
            store.reserve(),
            kind,
            key,
            parent,
            info.labels.clone(),
            |_| Ok::<_, Error>(()),
        );
        made.unwrap();
        if info.kind == Kind::Committed {
            store.commit(&info.name, key, parent, info.labels).unwrap();
        }
    }
    run(&store)
}

/// Runs a property on one store for all inputs.
fn on_a_store<S: Strategy>(inputs: &S, property: impl Fn(&Snapshotter, S::Value)) {
    let config = Config {
        source_file: Some(file!()),
        ..fuzzing::config()
    };
    let run = with_store(|store| {
        TestRunner::new(config).run(inputs, |input| {
            property(store, input);
            Ok(())
        })
    });
    run.unwrap_or_else(|failure| panic!("{failure}"));
}

type Listed = BTreeSet<String>;

fn list(store: &Snapshotter, filters: &[&str]) -> Result<Listed, Error> {
    let mut names = Listed::new();
    let (listed, peak) = peak_bytes(|| {
        store.list(filters, |_, info| {
            assert!(names.insert(info.name));
            ControlFlow::Continue(())
        })
    });
    assert!(peak < MAX_PEAK, "{peak} bytes for {filters:?}");
    listed.map(|()| names)
}

#[derive(Clone, Debug)]
struct Selector {
    path: Vec<&'static str>,
    test: Test,
    /// How it is written: quotes, spaces and escapes where none are needed.
    style: Vec<bool>,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(&'static str),
    NotEqual(&'static str),
    Contains(&'static str),
    Is(&'static str),
    /// A regular expression that is none.
    Broken,
}

/// The semantics of containerd (`pkg/filters`, `core/snapshots/storage`), said once more.
fn holds(selector: &Selector, info: &Info) -> bool {
    let value = match selector.path[0] {
        "kind" => Some(info.kind.as_str()),
        "name" => Some(info.name.as_str()),
        "parent" => Some(info.parent.as_str()),
        "labels" => {
            let mut label = String::new();
            for (n, part) in selector.path[1..].iter().enumerate() {
                if n > 0 {
                    label.push('.');
                }
                label.push_str(part);
            }
            let found = info.labels.iter().find(|(name, _)| **name == label);
            found.map(|(_, value)| value.as_str())
        }
        _ => None,
    };
    match selector.test {
        Test::Present => value.is_some(),
        Test::Equal(wanted) => value.is_some() && value == Some(wanted),
        Test::NotEqual(unwanted) => value.unwrap_or("") != unwanted,
        Test::Contains(piece) => value.unwrap_or("").contains(piece),
        Test::Is(wanted) => value.unwrap_or("") == wanted,
        Test::Broken => false,
    }
}

fn write(selector: &Selector) -> String {
    let mut style = selector.style.iter().copied().cycle();
    let mut coin = || style.next().unwrap_or(false);
    let mut text = String::new();
    for (n, part) in selector.path.iter().enumerate() {
        if n > 0 {
            text.push('.');
        }
        if coin() && coin() {
            text.push(' ');
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !part.is_empty() && part.chars().all(is_word) && coin() {
            text.push_str(part);
        } else {
            text.push_str(&quote(part, '"', &mut coin));
        }
    }
    let escaped = |text: &str| regex::escape(text);
    let (operator, value) = match selector.test {
        Test::Present => return text,
        Test::Equal(value) => ("==", value.to_owned()),
        Test::NotEqual(value) => ("!=", value.to_owned()),
        Test::Contains(piece) => ("~=", escaped(piece)),
        Test::Is(value) => ("~=", format!("^{}$", escaped(value))),
        Test::Broken => ("~=", "(x".to_owned()),
    };
    if coin() {
        text.push('\t');
    }
    text.push_str(operator);
    if coin() {
        text.push('\u{3000}');
    }
    let is_plain = |c: char| !c.is_whitespace() && !c.is_control() && c != ',';
    let may_begin = |c: char| !"\"/|.=!~".contains(c);
    let is_run = value.chars().all(is_plain) && value.starts_with(may_begin);
    let mark = match (coin(), coin()) {
        (true, true) if operator == "~=" => '/',
        (true, false) if operator == "~=" => '|',
        _ => '"',
    };
    match is_run && coin() {
        true => text + &value,
        false => text + &quote(&value, mark, &mut coin),
    }
}

/// Go's quoting, with more escapes than are needed.
fn quote(text: &str, mark: char, coin: &mut impl FnMut() -> bool) -> String {
    let mut quoted = String::from(mark);
    for c in text.chars() {
        match c {
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str(if coin() { "\\n" } else { "\\012" }),
            _ if c == mark => quoted.extend(['\\', c]),
            _ if coin() => quoted.push(c),
            _ if c.is_ascii() => quoted.push_str(&format!("\\x{:02X}", u32::from(c))),
            _ if u32::from(c) < 0x1_0000 => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => quoted.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    quoted.push(mark);
    quoted
}

fn selector() -> impl Strategy<Value = Selector> {
    let path = prop_oneof![
        4 => select(vec!["kind", "name", "parent", "image", "labels"]).prop_map(|field| vec![field]),
        4 => select(LABELS.to_vec()).prop_map(|label| vec!["labels", label]),
        1 => Just(vec!["labels", "a", "b", "c"]),
        1 => Just(vec!["labels", "a.b", "c"]),
        1 => Just(vec!["labels", "a.b", "x"]),
        1 => Just(vec!["name", "and", "more"]),
    ];
    let mut values = NAMES.to_vec();
    values.extend(["", "active", "view", "committed", "labels", "other"]);
    let value = || select(values.clone());
    let test = prop_oneof![
        2 => Just(Test::Present),
        3 => value().prop_map(Test::Equal),
        3 => value().prop_map(Test::NotEqual),
        2 => value().prop_map(Test::Is),
        2 => select(vec!["", "a", "sha256:", "/1", "\"", "\n", "|", "ä"]).prop_map(Test::Contains),
        1 => Just(Test::Broken),
    ];
    (path, test, vec(any::<bool>(), 1..40)).prop_map(|(path, test, style)| Selector {
        path,
        test,
        style,
    })
}

#[test]
fn a_filter_means_what_it_was_made_to_mean() {
    let infos = snapshots();
    let filters = vec(vec(selector(), 1..4), 0..4);
    on_a_store(&filters, |store, filters| {
        let written: Vec<_> = filters
            .iter()
            .map(|all| all.iter().map(write).collect::<Vec<_>>().join(","))
            .collect();
        let written: Vec<_> = written.iter().map(String::as_str).collect();
        let expected: Listed = infos
            .iter()
            .filter(|info| {
                let mut any = filters.iter();
                filters.is_empty() || any.any(|all| all.iter().all(|one| holds(one, info)))
            })
            .map(|info| info.name.clone())
            .collect();
        assert_eq!(list(store, &written).unwrap(), expected, "{written:?}");
    });
}

/// The grammar of containerd's filters as a regular expression.
static GRAMMAR: LazyLock<Regex> = LazyLock::new(|| {
    let quoted = |mark: &str| {
        let escape = format!(
            r"\\(?:[abfnrtv\\{mark}]|[0-3][0-7]{{2}}|x[[:xdigit:]]{{2}}|u(?:[0-9a-ce-fA-CE-F][[:xdigit:]]{{3}}|[dD][0-7][[:xdigit:]]{{2}})|U(?:0000(?:[0-9a-ce-fA-CE-F][[:xdigit:]]{{3}}|[dD][0-7][[:xdigit:]]{{2}})|000[1-9a-fA-F][[:xdigit:]]{{4}}|0010[[:xdigit:]]{{4}}))"
        );
        format!(r"{mark}(?:[^{mark}\\\n]|{escape})*{mark}")
    };
    let field = format!("(?:[A-Za-z0-9_]+|{})", quoted("\""));
    let path = format!(r"\s*{field}(?:\.\s*{field})*");
    let run = r#"[^\s\p{Cc},"/|.=!~][^\s\p{Cc},]*"#;
    let value = format!("(?:{run}|{})", quoted("\""));
    let pattern = format!("(?:{value}|{}|{})", quoted("/"), quoted(r"\|"));
    let test = format!(r"\s*(?:(?:==|!=)\s*{value}|~=\s*{pattern})");
    let selector = format!("{path}(?:{test})?");
    Regex::new(&format!(r"\A(?:{selector}(?:,{selector})*)?\z")).unwrap()
});

/// Escapes of single bytes, which need not be UTF-8: the grammar does not say.
static BYTES: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\\(?:x[89a-fA-F]|[2-7][0-7])").unwrap());

/// Lists by one filter, and checks that it is refused when and only when it breaks the grammar.
fn checked_list(store: &Snapshotter, filter: &str) -> Option<Listed> {
    let listed = list(store, &[filter]);
    assert_eq!(
        list(store, &[filter]).ok(),
        listed.as_ref().ok().cloned(),
        "not deterministic: {filter:?}"
    );
    match listed {
        Ok(listed) => {
            assert!(GRAMMAR.is_match(filter), "{filter:?} is taken");
            Some(listed)
        }
        Err(error) => {
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
            message(&error);
            match &error {
                Error::FilterSyntax { offset, .. } => {
                    assert!(filter.is_char_boundary(*offset), "{offset} in {filter:?}");
                    let excused = BYTES.is_match(filter);
                    assert!(excused || !GRAMMAR.is_match(filter), "{filter:?}: {error}");
                }
                Error::FilterTooLarge { .. } => {}
                other => panic!("{filter:?}: {other}"),
            }
            None
        }
    }
}

fn corpus() -> Corpus {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/filter");
    let words = [
        ",",
        ".",
        "\"",
        "/",
        "|",
        "\\",
        "==",
        "!=",
        "~=",
        "=",
        " ",
        "name",
        "parent",
        "kind",
        "labels.",
        "\\x41",
        "\\u00e4",
        "\\U0010ffff",
        "\\101",
        "\n",
        "\u{85}",
        "(",
        ")*",
        "{1000}",
        "[^",
        "\\\\p{L}",
        "k8s.io",
        "(?i)",
    ];
    Corpus::read(&dir, &words)
}

#[test]
fn the_corpus_is_read_as_the_grammar_says() {
    let filters: Vec<_> = corpus()
        .inputs()
        .map(|input| String::from_utf8(input.to_vec()).unwrap())
        .collect();
    with_store(|store| {
        for filter in &filters {
            checked_list(store, filter);
        }
    });
}

#[test]
fn mutated_filters_are_joined_by_and_and_by_or() {
    let filters = (corpus().mutated_text(), corpus().mutated_text());
    on_a_store(&filters, |store, (one, other)| {
        let (first, second) = (checked_list(store, &one), checked_list(store, &other));
        let (Some(first), Some(second)) = (first, second) else {
            list(store, &[&one, &other]).unwrap_err();
            return;
        };
        // There may be too many regular expressions in both together.
        match list(store, &[&one, &other]) {
            Ok(either) => assert_eq!(either, &first | &second, "{one:?} {other:?}"),
            Err(error) => assert!(matches!(error, Error::FilterTooLarge { .. }), "{error}"),
        }
        if one.is_empty() || other.is_empty() {
            return;
        }
        match list(store, &[&format!("{one},{other}")]) {
            Ok(both) => assert_eq!(both, &first & &second, "{one:?} {other:?}"),
            Err(error) => assert!(matches!(error, Error::FilterTooLarge { .. }), "{error}"),
        }
    });
}
