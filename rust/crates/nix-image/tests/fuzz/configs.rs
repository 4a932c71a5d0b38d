//! Image configs, and the configs of containers that users give.

use std::collections::BTreeMap;

use fuzzing::{Corpus, message, peak_bytes};
use nix_image::{ImageConfig, KeySet, RuntimeConfig};
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
};
use serde_json::{Value, json};

fn corpus() -> Corpus {
    let words = [
        "null",
        "{}",
        "[]",
        "[",
        "\"",
        ",",
        ":",
        "-1",
        "1e999",
        "18446744073709551616",
        "\\ud800",
        "\\u0000",
        "true",
        "\"Env\"",
        "\"env\"",
        "\"Entrypoint\":",
        "\"sha256:\"",
        "\"=\"",
        "[[[[[[[[",
    ];
    crate::corpus("config", &words)
}

/// What serde_json makes of a byte is some 50 bytes (a map with an entry for every few bytes).
fn check_peak(peak: u64, json: &[u8]) {
    let len = json.len() as u64;
    assert!(peak < 64_000 + 100 * len, "{peak} bytes for {len}");
}

fn check_runtime_config(json: &[u8]) {
    let (parsed, peak) = peak_bytes(|| RuntimeConfig::parse(json));
    check_peak(peak, json);
    match parsed {
        Ok(config) => check_laws(&config),
        Err(error) => drop(message(&error)),
    }
}

fn parse(json: &Value) -> RuntimeConfig {
    RuntimeConfig::parse(json.to_string().as_bytes()).unwrap()
}

/// What holds for every config that there is.
fn check_laws(config: &RuntimeConfig) {
    let written = serde_json::to_vec(config).unwrap();
    assert_eq!(&RuntimeConfig::parse(&written).unwrap(), config);
    // `Value` sorts the keys of objects.
    let sorted: Value = serde_json::from_slice(&written).unwrap();
    assert_eq!(sorted.to_string().as_bytes(), written);
    // Nothing on top changes nothing.
    assert_eq!(&RuntimeConfig::default().on_top_of(config.clone()), config);
    let once = config.clone().on_top_of(RuntimeConfig::default());
    assert_eq!(once.clone().on_top_of(RuntimeConfig::default()), once);
}

/// The last value of each name, and how often there is one.
fn environment(env: &[String]) -> BTreeMap<&str, (&str, usize)> {
    let mut values = BTreeMap::new();
    for entry in env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        let (last, times) = values.entry(name).or_insert((value, 0));
        *last = value;
        *times += 1;
    }
    values
}

fn check_image_config(json: &[u8]) {
    let (parsed, peak) = peak_bytes(|| serde_json::from_slice::<ImageConfig>(json));
    check_peak(peak, json);
    if let Ok(config) = parsed {
        let written = serde_json::to_vec(&config).unwrap();
        let again: ImageConfig = serde_json::from_slice(&written).unwrap();
        assert_eq!(again, config);
        let sorted: Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(sorted.to_string().as_bytes(), written);
        let chain_ids = config.rootfs.chain_ids();
        assert_eq!(chain_ids.len(), config.rootfs.diff_ids.len());
        assert_eq!(chain_ids.first(), config.rootfs.diff_ids.first());
        check_laws(&config.config);
    }
}

#[test]
fn the_corpus_is_read_by_rules_that_hold_for_all() {
    for input in corpus().inputs() {
        check_runtime_config(input);
        check_image_config(input);
    }
}

fn runtime_config() -> impl Strategy<Value = RuntimeConfig> {
    let words = || option::of(vec("\\PC{0,5}", 0..3));
    let keys = || vec("[a-c/]{1,2}", 0..3).prop_map(KeySet::from_iter);
    let word = || prop_oneof![Just(String::new()), "\\PC{1,5}".boxed()];
    let env = vec(
        prop_oneof![9 => "[A-C]{1,2}=?[a-c=]{0,2}", 1 => "\\PC{0,4}"],
        0..6,
    );
    let commands = (words(), words(), env, vec("[a-z]{1,3}", 0..2));
    let sets = (keys(), keys(), btree_map("[a-c]", "\\PC{0,3}", 0..3));
    let rest = (
        any::<bool>(),
        option::of(any::<i64>()),
        option::of(Just(json!({"Test": ["x"]}))),
    );
    (commands, sets, (word(), word(), word()), rest).prop_map(
        |((cmd, entrypoint, env, shell), (exposed_ports, volumes, labels), words, rest)| {
            let (stop_signal, user, working_dir) = words;
            let (args_escaped, stop_timeout, healthcheck) = rest;
            RuntimeConfig {
                args_escaped,
                cmd,
                entrypoint,
                env,
                exposed_ports,
                healthcheck,
                labels,
                shell,
                stop_signal,
                stop_timeout,
                user,
                volumes,
                working_dir,
            }
        },
    )
}

proptest! {
    #![proptest_config(fuzzing::config())]

    #[test]
    fn mutated_configs(json in corpus().mutated()) {
        check_runtime_config(&json);
        check_image_config(&json);
    }

    #[test]
    fn keys_of_every_case_and_values_of_every_type(
        keys in vec(("(Cmd|env|VOLUMES|Labels|user|StopTimeout|x)", 0..8_usize), 0..4),
    ) {
        let values = [json!(null), json!([]), json!({}), json!("x"), json!(1), json!(["a"]), json!({"a": {}}), json!({"a": "b"})];
        let keys = keys.into_iter().map(|(key, value)| format!("{key:?}:{}", values[value]));
        check_runtime_config(format!("{{{}}}", keys.collect::<Vec<_>>().join(",")).as_bytes());
    }

    #[test]
    fn a_config_stands_on_two_others(
        lower in runtime_config(), middle in runtime_config(), upper in runtime_config(),
    ) {
        for config in [&lower, &middle, &upper] {
            check_laws(config);
        }
        let merged = upper.clone().on_top_of(lower.clone());
        let (own, base, all) = (environment(&upper.env), environment(&lower.env), environment(&merged.env));
        for (name, &(value, times)) in &all {
            match own.get(name) {
                Some((wanted, _)) => prop_assert_eq!((value, times), (*wanted, 1), "{}", name),
                None => prop_assert_eq!(Some(&(value, times)), base.get(name)),
            }
        }
        prop_assert!(own.keys().chain(base.keys()).all(|name| all.contains_key(name)));

        // It does not matter which two are put together first.
        let left = upper.clone().on_top_of(middle.clone()).on_top_of(lower.clone());
        let right = upper.on_top_of(middle.on_top_of(lower));
        prop_assert_eq!(&left, &right);
        prop_assert_eq!(parse(&json!(left)), right);
    }
}
