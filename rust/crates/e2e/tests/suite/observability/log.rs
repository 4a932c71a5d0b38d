//! The log: a line for each call, whatever is in it.

use std::{fs, os::unix::fs::MetadataExt, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{
    daemon::{Config, Daemon},
    host::test,
    image::NIX_STORE_PATH,
    process::{SETTLE, poll, when},
    snapshots::{Snapshots, refused, says},
};
use serde_json::Value;
use tonic::Code;

use super::{Missing, config, ends, json_lines};

/// Whether a call took so long that it is told of: any may where the disk stalls.
fn was_slow(line: &Value) -> bool {
    line["duration_ms"].as_f64().is_some_and(|ms| ms > 1_000.0)
}

/// Whether the end of a call that is nobody's fault has the level that its duration gives it.
fn is_quiet(line: &Value) -> bool {
    let level = match was_slow(line) {
        true => "INFO",
        false => "DEBUG",
    };
    line["level"] == level
}

#[test]
fn every_call_ends_with_a_line_that_says_what_it_was() {
    test(|host| {
        let daemon = Daemon::start(&config(host))?;
        let snapshots = daemon.snapshots()?;
        snapshots.layer("base", "", &[])?;
        snapshots.prepare("active", "base", &[])?;
        refused(snapshots.stat("nothing"), Code::NotFound, &["nothing"])?;
        let bad = (format!("{NIX_STORE_PATH}0"), "/etc/passwd".to_owned());
        let answer = snapshots.prepare("bad", "", &[(&bad.0, &bad.1)]);
        refused(answer, Code::InvalidArgument, &["/etc/passwd"])?;

        let prepared = &ends(&daemon, "Prepare", "active")?[0];
        let span = &prepared["span"];
        ensure!(
            span["parent"] == "base" && prepared["code"] == "OK",
            "{prepared}"
        );
        ensure!(is_quiet(prepared), "{prepared}");
        ensure!(
            prepared["duration_ms"].as_f64().is_some_and(|ms| ms > 0.0),
            "{prepared}"
        );
        // The directory of the snapshot, by its number.
        let id = span["snapshot"].as_str().context("no snapshot id")?;
        let kept = daemon.config().kept()?;
        ensure!(kept.snapshots.contains(id), "{prepared}");
        ensure!(span["namespace"].is_null(), "{prepared}");

        let committed = &ends(&daemon, "Commit", "extract-base")?[0];
        ensure!(committed["span"]["committed_as"] == "base", "{committed}");
        let missing = &ends(&daemon, "Stat", "nothing")?[0];
        ensure!(
            missing["code"] == "NotFound" && is_quiet(missing),
            "{missing}"
        );
        let failed = &ends(&daemon, "Prepare", "bad")?[0];
        ensure!(
            failed["code"] == "InvalidArgument" && failed["level"] == "WARN",
            "{failed}"
        );
        ensure!(
            failed["error"]
                .as_str()
                .is_some_and(|error| error.contains("/etc/passwd"))
        );

        // With the header that containerd 2.x sends.
        let named = Snapshots::of_containerd(daemon.config().address(), "nix", "k8s.io")?;
        named.prepare("theirs", "", &[])?;
        let theirs = &ends(&daemon, "Prepare", "theirs")?[0];
        ensure!(theirs["span"]["namespace"] == "k8s.io", "{theirs}");
        Ok(())
    });
}

#[test]
fn whatever_is_in_a_key_is_one_line_of_bounded_length() {
    test(|host| {
        for format in ["text", "json"] {
            let name = format!("daemon-{format}");
            let config = Config::new(host, &name)
                .environment("NIX_SNAPSHOTTER_LOG_FORMAT", format)
                .environment("NIX_SNAPSHOTTER_LOG_LEVEL", "debug");
            let daemon = Daemon::start(&config)?;
            let snapshots = daemon.snapshots()?;
            let long = "k".repeat(1_000_000);
            for key in ["a\nFORGED\r\n\u{1b}[31mred\u{7}\u{85}", &long] {
                refused(snapshots.stat(key), Code::NotFound, &[])?;
                snapshots.prepare(key, "", &[])?;
            }
            poll("the last call", SETTLE, || {
                let ended = daemon.log().matches("call ended").count();
                Ok(when(ended == 2))
            })?;
            let log = daemon.log();
            for line in log.lines() {
                ensure!(line.len() < 20_000, "{format}: {} bytes", line.len());
                let begins = match format {
                    "json" => line.starts_with('{'),
                    _ => line.starts_with(|first: char| first.is_ascii_digit()),
                };
                ensure!(begins, "{format}: {line}");
            }
            if format == "json" {
                json_lines(&log)?;
            }
            let breaks = |c: char| c.is_control() && c != '\n';
            ensure!(!log.contains(breaks), "{format}: {log:?}");
            says(&log, &["FORGED", "(1000000 bytes)"])?;
        }
        Ok(())
    });
}

#[test]
fn the_journal_gets_severities_and_no_second_time() {
    test(|host| {
        // What systemd does: it names the file that standard error is.
        let config = Config::new(host, "daemon");
        let log = host.dir().join("daemon/log");
        fs::create_dir_all(host.dir().join("daemon"))?;
        fs::write(&log, "")?;
        let file = fs::metadata(&log)?;
        let stream = format!("{}:{}", file.dev(), file.ino());
        let first = |config: &Config| -> Result<String> {
            let daemon = Daemon::start(config)?;
            // It says that it serves right after it has told systemd.
            poll("the first line", SETTLE, || {
                let log = daemon.log();
                Ok(log.split_once('\n').map(|(first, _)| first.to_owned()))
            })
        };
        let line = first(&config.environment("JOURNAL_STREAM", stream))?;
        ensure!(line.starts_with("<6> INFO "), "{line}");

        // The journal of the program that started this one.
        let other = Config::new(host, "other").environment("JOURNAL_STREAM", "1:2");
        let line = first(&other)?;
        ensure!(line.starts_with("20"), "{line}");
        Ok(())
    });
}

#[test]
fn slow_calls_are_told_without_being_asked_for() {
    test(|host| {
        let missing = Missing::new(host);
        let config = missing.builder(Config::new(host, "daemon").line("log_format = \"json\""))?;
        let daemon = Daemon::start(&config)?;
        let snapshots = daemon.snapshots()?;
        let (label, path) = missing.label();
        snapshots.prepare("fast", "", &[])?;
        let slow = snapshots.begin_prepare("slow", "", &[(&label, &path)]);
        // The daemon counts from when the call has come.
        poll("the call", SETTLE, || {
            Ok(when(!daemon.config().kept()?.gc_roots.is_empty()))
        })?;
        std::thread::sleep(Duration::from_millis(1_200));
        fs::write(&missing.go, "")?;
        slow.answer()?;
        let told = &ends(&daemon, "Prepare", "slow")?[0];
        ensure!(told["level"] == "INFO" && told["code"] == "OK", "{told}");
        ensure!(was_slow(told), "{told}");
        for line in json_lines(&daemon.log())? {
            let is_of_fast = line.to_string().contains("\"fast\"");
            ensure!(!is_of_fast || was_slow(&line), "{line}");
        }
        Ok(())
    });
}
