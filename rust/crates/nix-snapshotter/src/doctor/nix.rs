//! Whether Nix can do what the daemon asks of it.

use std::{ffi::OsStr, path::Path};

use serde_json::Value;

use super::{
    finding::{Check, Finding},
    program::{find, is_executable, output, version_in},
};
use crate::config::Config;

const NIX: Check = Check("nix");
const SETTINGS: Check = Check("nix-settings");

/// The oldest release that the daemon is tested against the behaviour of.
const OLDEST: (u32, u32) = (2, 18);

/// `nix` does not do its part without this, whatever is configured.
const FEATURE: [&str; 2] = ["--extra-experimental-features", "nix-command"];

/// Looks for the programs on `path`, and asks them.
pub(super) async fn look(config: &Config, path: Option<&OsStr>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(builder) = &config.external_builder {
        findings.push(check_builder(builder, is_executable(builder)));
    }
    let Some(nix_store) = find("nix-store", path) else {
        findings.push(match config.external_builder {
            Some(_) => NIX.note(
                "nix-store is not on the PATH; the external builder stands for it, and has to make \
                 the GC roots",
            ),
            None => NIX.error(
                match path {
                    Some(_) => "nix-store is not on the PATH of the daemon",
                    None => "nix-store is not on the PATH",
                },
                "install Nix (https://nixos.org/download), or set Environment=PATH=… in the unit \
                 of the daemon",
            ),
        });
        return findings;
    };
    findings.push(check_version(&output(&nix_store, &["--version"]).await));
    let Some(nix) = find("nix", path) else {
        findings.push(
            NIX.note("nix is not on the PATH beside nix-store: its settings are not looked at"),
        );
        return findings;
    };
    let store = ask(
        &nix,
        [&["store", "info", "--json"], &["store", "ping", "--json"]],
    )
    .await;
    findings.push(check_store(&store));
    let eval = ["eval", "--raw", "--expr", "builtins.storeDir"];
    let store_dir = output(&nix, &[&FEATURE[..], &eval].concat()).await;
    findings.extend(
        store_dir
            .ok()
            .and_then(|dir| check_store_dir(&dir, &config.store_dir)),
    );
    match ask(
        &nix,
        [&["config", "show", "--json"], &["show-config", "--json"]],
    )
    .await
    {
        Ok(settings) => findings.extend(check_settings(&settings)),
        Err(reason) => {
            findings.push(SETTINGS.note(format!("the settings cannot be read: {reason}")));
        }
    }
    findings
}

/// Asks by the name that a command has now, and then by the one that it had in 2.18.
async fn ask(nix: &Path, names: [&[&str]; 2]) -> Result<Value, String> {
    let mut answer = Err(String::new());
    for command in names {
        answer = output(nix, &[&FEATURE, command].concat()).await;
        if answer.is_ok() {
            break;
        }
    }
    serde_json::from_str(&answer?).map_err(|error| error.to_string())
}

fn check_builder(builder: &Path, executable: bool) -> Finding {
    let shown = builder.display();
    match executable {
        true => NIX.ok(format!("store paths are provided by {shown}")),
        false => NIX.error(
            format!("`external_builder` names {shown}, which is no program"),
            format!("chmod +x {shown}, or name another program"),
        ),
    }
}

fn check_version(said: &Result<String, String>) -> Finding {
    let remedy = "install Nix 2.18 or newer";
    match said {
        Err(reason) => NIX.error(format!("nix-store does not run: {reason}"), remedy),
        Ok(text) => match version_in(text) {
            Some(version) if version < OLDEST => NIX.warning(
                format!("{text} is older than what this program is made for"),
                remedy,
            ),
            Some(_) => NIX.ok(text.clone()),
            None => NIX.note(format!("nix-store has the unknown version {text:?}")),
        },
    }
}

fn check_store(said: &Result<Value, String>) -> Finding {
    let store = match said {
        Ok(store) => store,
        Err(reason) => {
            return NIX.error(
                format!("the store cannot be reached: {reason}"),
                "systemctl start nix-daemon.socket, where Nix has a daemon; \
                 otherwise run as the owner of the store",
            );
        }
    };
    let url = store["url"].as_str().unwrap_or("unknown");
    // A number before 2.28.
    let trusted = store["trusted"]
        .as_bool()
        .or(store["trusted"].as_u64().map(|one| one == 1));
    match (url, trusted) {
        ("daemon", Some(false)) => NIX.note(
            "the store is reached through nix-daemon, which does not trust this user: \
             its own settings decide where paths come from",
        ),
        ("daemon", _) => NIX.ok("the store is reached through nix-daemon"),
        (url, _) => NIX.ok(format!("the store is reached directly ({url})")),
    }
}

fn check_store_dir(found: &str, configured: &str) -> Option<Finding> {
    (found != configured).then(|| {
        NIX.error(
            format!("Nix has its store in {found}, and `store_dir` is {configured}"),
            format!("store_dir = \"{found}\""),
        )
    })
}

/// The settings that decide whether a path that is missing can be had.
fn check_settings(settings: &Value) -> Vec<Finding> {
    let list = |name: &str| -> Vec<&str> {
        let values = settings[name]["value"].as_array().into_iter().flatten();
        values.filter_map(Value::as_str).collect()
    };
    let substituters = list("substituters");
    let keys = list("trusted-public-keys");
    let require_sigs = settings["require-sigs"]["value"].as_bool() != Some(false);
    let mut findings = Vec::new();
    if substituters.is_empty() {
        findings.push(SETTINGS.warning(
            "there are no substituters: only what is in the store already can run, or be built here",
            "substituters = https://cache.nixos.org/ in nix.conf",
        ));
    }
    if !require_sigs {
        findings.push(SETTINGS.warning(
            "require-sigs is false: whoever serves or redirects a substituter decides what runs here",
            "require-sigs = true in nix.conf, and the keys of the substituters in trusted-public-keys",
        ));
    } else if keys.is_empty() && !substituters.is_empty() {
        findings.push(SETTINGS.error(
            "trusted-public-keys is empty and require-sigs is true: nothing that the substituters \
             have is taken",
            "trusted-public-keys = the keys of the substituters, in nix.conf",
        ));
    }
    if findings.is_empty() {
        findings.push(SETTINGS.ok(format!(
            "missing paths come from {}, signed by one of {} keys",
            substituters.join(", "),
            keys.len()
        )));
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::finding::Level;

    #[test]
    fn old_and_broken_releases_are_told_from_good_ones() {
        for (said, level) in [
            (Ok("nix-store (Nix) 2.18.0"), Level::Ok),
            (Ok("nix-store (Lix, like Nix) 2.91.1"), Level::Ok),
            (Ok("nix-store (Nix) 2.17.1"), Level::Warning),
            (Ok("something else"), Level::Note),
            (Err("exec format error"), Level::Error),
        ] {
            let said = said.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(check_version(&said).level, level, "{said:?}");
        }
    }

    #[test]
    fn stores_are_reached_in_two_ways_or_not_at_all() {
        for (said, level, words) in [
            (
                Ok(json!({"url": "local", "trusted": 1})),
                Level::Ok,
                "directly (local)",
            ),
            (
                Ok(json!({"url": "daemon", "trusted": true})),
                Level::Ok,
                "nix-daemon",
            ),
            (
                Ok(json!({"url": "daemon", "trusted": 0})),
                Level::Note,
                "does not trust",
            ),
            (Err("refused".to_owned()), Level::Error, "refused"),
        ] {
            let finding = check_store(&said);
            assert_eq!(finding.level, level, "{said:?}");
            assert!(finding.message.contains(words), "{finding:?}");
        }
        assert_eq!(check_store_dir("/nix/store", "/nix/store"), None);
        assert!(check_store_dir("/gnu", "/nix/store").is_some());
    }

    #[test]
    fn settings_under_which_nothing_arrives_are_named() {
        let settings = |substituters: &[&str], keys: &[&str], sigs: bool| {
            json!({
                "substituters": { "value": substituters },
                "trusted-public-keys": { "value": keys },
                "require-sigs": { "value": sigs },
            })
        };
        let cache: &[&str] = &["https://cache.nixos.org/"];
        let key: &[&str] = &["cache.nixos.org-1:key"];
        for (settings, level, word) in [
            (settings(cache, key, true), Level::Ok, "cache.nixos.org"),
            (settings(&[], key, true), Level::Warning, "no substituters"),
            (
                settings(cache, &[], true),
                Level::Error,
                "trusted-public-keys",
            ),
            (settings(cache, &[], false), Level::Warning, "require-sigs"),
        ] {
            let findings = check_settings(&settings);
            assert_eq!(findings.len(), 1, "{findings:?}");
            assert_eq!(findings[0].level, level, "{findings:?}");
            assert!(findings[0].message.contains(word), "{findings:?}");
        }
    }
}
