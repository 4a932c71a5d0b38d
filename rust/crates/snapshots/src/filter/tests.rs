use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::error::Code;
use crate::model::{Kind, Labels};

fn info(name: &str, kind: Kind, parent: &str, labels: &[(&str, &str)]) -> Info {
    let labels: Labels = labels
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let (name, parent, time) = (name.to_owned(), parent.to_owned(), SystemTime::UNIX_EPOCH);
    Info {
        name,
        parent,
        kind,
        created: time,
        updated: time,
        labels,
    }
}

fn matching<'a>(infos: &'a [Info], filters: &[&str]) -> Vec<&'a str> {
    let filter = Filter::parse(filters).unwrap();
    infos
        .iter()
        .filter(|info| filter.matches(info))
        .map(|info| info.name.as_str())
        .collect()
}

/// The snapshots and filters of the subtest "Walk" of containerd's suite
/// (core/snapshots/testsuite).
#[test]
fn the_filters_of_containerds_own_test() {
    let root = ("containerd.io/gc.root", "check-walk");
    let infos = [
        info("a-np", Kind::Active, "", &[root]),
        info("p", Kind::Committed, "", &[root]),
        info("a", Kind::Active, "p", &[root]),
        info("v", Kind::View, "p", &[root]),
        info("p-wl", Kind::Committed, "", &[root, ("l", "1")]),
        info("a-wl", Kind::Active, "p-wl", &[root, ("l", "2")]),
        info("v-wl", Kind::View, "p-wl", &[root, ("l", "3")]),
        info("a-np-wl", Kind::Active, "", &[root, ("l", "2")]),
        info("of another test", Kind::Active, "p-wl-not", &[]),
    ];
    const ROOT: &str = r#"labels."containerd.io/gc.root"==check-walk"#;
    let with = |selector: &str| format!("{selector},{ROOT}");
    let cases: [(&[&str], &[&str]); 10] = [
        (
            &[ROOT],
            &["a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"],
        ),
        (&[&with("kind==active")], &["a-np", "a", "a-wl", "a-np-wl"]),
        (&[&with("kind==view")], &["v", "v-wl"]),
        (&[&with("kind==committed")], &["p", "p-wl"]),
        (&["name==p", "name==a-np-wl"], &["p", "a-np-wl"]),
        (&["name==a-wl,labels.l"], &["a-wl"]),
        (&["parent==p"], &["a", "v"]),
        (&[&with(r#"parent!="""#)], &["a", "v", "a-wl", "v-wl"]),
        (&["labels.l"], &["p-wl", "a-wl", "v-wl", "a-np-wl"]),
        (&["labels.l==2"], &["a-wl", "a-np-wl"]),
    ];
    for (filters, want) in cases {
        assert_eq!(matching(&infos, filters), want, "{filters:?}");
    }
}

#[test]
fn what_selectors_mean() {
    let infos = [
        info("plain", Kind::Active, "", &[]),
        info(
            "k8s.io/1/x y",
            Kind::Committed,
            "p",
            &[("a.b/c", "d,e"), ("foo", "omg_asdf.asdf-qwer")],
        ),
    ];
    let [plain, rich] = ["plain", "k8s.io/1/x y"];
    let cases: &[(&str, &[&str])] = &[
        ("", &[plain, rich]),
        // Presence: name, kind and parent are always there.
        ("name", &[plain, rich]),
        ("kind", &[plain, rich]),
        ("parent", &[plain, rich]),
        ("parent.and.more==p", &[rich]),
        ("labels", &[]),
        ("labels.foo", &[rich]),
        ("unknown", &[]),
        // An absent field is equal to nothing, and differs from everything but the empty value.
        (r#"labels.foo=="""#, &[]),
        (r#"labels.foo!="""#, &[rich]),
        ("labels.foo!=x", &[plain, rich]),
        ("unknown!=x", &[plain, rich]),
        (r#"parent=="""#, &[plain]),
        // Regular expressions look anywhere, and see an absent value as empty.
        ("name~=lai", &[plain]),
        ("name~=^lai", &[]),
        ("labels.foo~=^$", &[plain]),
        ("labels.foo~=asdf.asdf-[qr]wer$", &[rich]),
        (r"labels.foo~=omg_asdf\.asdf", &[rich]),
        (r"name~=/^k8s\\.io\//", &[rich]),
        (r"name~=|io/1/x y|", &[rich]),
        (r#"name~="x y""#, &[rich]),
        ("name~=(", &[]),
        ("name~=(?!x)", &[]),
        // Values and names with other characters.
        ("labels.foo==omg_asdf.asdf-qwer", &[rich]),
        (r#"labels."a.b/c"=="d,e""#, &[rich]),
        (r#"labels.a."b/c"=="d,e""#, &[rich]),
        (r#"labels."a.b/c"~=|d,e|"#, &[rich]),
        (r#"labels."a.b\x2fc"=="\u0064\054\U00000065""#, &[rich]),
        (r#"name==k8s.io/1/x"#, &[]),
        (r#""name"==plain"#, &[plain]),
        (r#"name==pla"in"#, &[]),
        // All selectors of a filter must hold.
        ("name==plain,kind==active", &[plain]),
        ("name==plain,kind==view", &[]),
        (" name ==\tplain, kind!= view", &[plain]),
    ];
    for &(filter, want) in cases {
        assert_eq!(matching(&infos, &[filter]), want, "{filter:?}");
    }
    assert_eq!(matching(&infos, &[]), [plain, rich]);
    assert_eq!(
        matching(&infos, &["name==plain", "labels.foo"]),
        [plain, rich]
    );
    assert_eq!(matching(&infos, &["name==plain", ""]), [plain, rich]);
}

#[test]
fn what_is_not_a_filter_and_where() {
    let cases = [
        (" ", 1),
        (",", 0),
        ("name==foo,", 10),
        ("labels.", 7),
        ("labels..a", 7),
        ("labels.?\"x\"==y", 7),
        ("labels.|foo|==x", 7),
        ("labels.ns/key==value", 9),
        ("labels.ns-key", 9),
        ("name=foo", 4),
        ("name===foo", 4),
        ("name<foo", 4),
        ("name foo", 5),
        ("name==", 6),
        ("name==,kind", 6),
        ("image~=,id?=?fbaq", 7),
        ("name==.x", 6),
        ("name==~x", 4),
        ("name==/foo/", 6),
        ("name==foo bar", 9),
        ("name==foo ,kind", 9),
        ("name ", 5),
        ("name==\"foo", 6),
        ("name==\"fo\no\"", 6),
        ("name==\"foo\"x", 11),
        ("name~=/foo", 6),
        (r#"name=="\g""#, 7),
        (r#"name=="\'""#, 7),
        // Go's escapes hold between slashes too.
        (r"name~=/k8s\.io/", 10),
        (r#"name=="\/""#, 7),
        (r#"name=="\x6""#, 7),
        (r#"name=="\08""#, 7),
        (r#"name=="\777""#, 7),
        (r#"name=="\ud800""#, 7),
        (r#"name=="\U00110000""#, 7),
        (r#"name=="\xff""#, 6),
        ("ä", 0),
        ("name==ä ö", 8),
    ];
    for (filter, at) in cases {
        match Filter::parse(&["kind==active", filter]) {
            Err(error @ Error::FilterSyntax { offset, .. }) => {
                assert_eq!(offset, at, "{error}");
                assert_eq!(error.code(), Code::InvalidArgument);
            }
            other => panic!("{filter:?}: {other:?}"),
        }
    }
}

#[test]
fn what_a_filter_can_cost_is_bounded() {
    let too_large = |filters: &[String]| {
        let error = Filter::parse(filters).unwrap_err();
        assert!(matches!(error, Error::FilterTooLarge { .. }), "{error}");
        assert_eq!(error.code(), Code::InvalidArgument);
    };
    too_large(&[format!("name=={}", "x".repeat(MAX_BYTES))]);
    too_large(&vec!["name~=x".to_owned(); MAX_REGEXES + 1]);
    too_large(&[vec!["name~=x"; MAX_REGEXES + 1].join(",")]);
    too_large(&["name~=/(x{1000}){1000}/".to_owned()]);
    let Error::FilterSyntax { filter, .. } = Filter::parse(&["ä".repeat(9000)]).unwrap_err()
    else {
        panic!()
    };
    assert!(filter.len() < 600);
}

/// Quotes as Go does, with more escapes than it needs.
fn quoted(text: &str, quote: char) -> String {
    let mut out = String::from(quote);
    for (i, c) in text.chars().enumerate() {
        match c {
            '\n' => out.push_str("\\n"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', quote]),
            c if i % 3 == 1 && c.is_ascii() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if i % 3 == 2 => out.push_str(&format!("\\U{:08X}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

proptest! {
    #[test]
    fn nothing_panics_and_errors_point_into_the_filter(
        filter in r#"([a-z.,"/|=!~\\ ]|\PC|.){0,40}"#,
    ) {
        if let Err(Error::FilterSyntax { offset, .. }) = Filter::parse(&[&filter]) {
            prop_assert!(filter.is_char_boundary(offset));
        }
    }

    #[test]
    fn any_label_can_be_named_and_compared(
        (name, value, other) in (any::<String>(), any::<String>(), any::<String>()),
        quote in prop_oneof![Just('"'), Just('/'), Just('|')],
    ) {
        let labelled = info("x", Kind::View, "", &[(&name, &value)]);
        let field = format!("labels.{}", quoted(&name, '"'));
        let hit = |test: &str, value: &str| {
            Filter::parse(&[format!("{field}{test}{value}")]).unwrap().matches(&labelled)
        };
        prop_assert!(hit("", ""));
        prop_assert!(hit("==", &quoted(&value, '"')));
        prop_assert!(!hit("!=", &quoted(&value, '"')));
        prop_assert_eq!(hit("==", &quoted(&other, '"')), value == other);
        let pattern = format!("^{}$", regex::escape(&value));
        prop_assert!(hit("~=", &quoted(&pattern, quote)));
    }

    #[test]
    fn plain_words_need_no_quotes(value in "[A-Za-z0-9_:@+-][A-Za-z0-9_.:/@+\"|=!~-]{0,20}") {
        let named = info(&value, Kind::Active, "", &[]);
        let hit = |filter: String| Filter::parse(&[filter]).unwrap().matches(&named);
        let alone = hit(format!("name=={value}"));
        let among_others = hit(format!("kind==active,name=={value},parent==\"\""));
        prop_assert!(alone && among_others);
    }
}
