//! `nix-snapshotter doctor` on machines on which something is wrong.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    containerd::Containerd,
    daemon::{Config, Daemon},
    host::{Host, test},
    image::NIX_STORE_PATH,
    observability::command,
    process::{SETTLE, poll, run, succeed, when},
    snapshots::says,
    store::Store,
};
use serde_json::Value;

/// What the command found, and its exit code.
struct Found {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Found {
    /// The findings of a level about one subject, each as one text.
    fn at(&self, level: &str, check: &str) -> Vec<String> {
        let of = |finding: &&Value| finding["level"] == level && finding["check"] == check;
        self.findings
            .iter()
            .filter(of)
            .map(ToString::to_string)
            .collect()
    }

    /// All errors, each as one text.
    fn errors(&self) -> Vec<String> {
        let errors = self
            .findings
            .iter()
            .filter(|finding| finding["level"] == "error");
        errors.map(ToString::to_string).collect()
    }

    /// Checks that something about a subject is wrong, that all these words are in what is
    /// said, and that the command fails for it.
    fn fails(&self, check: &str, words: &[&str]) -> Result<()> {
        ensure!(
            self.code == Some(1),
            "{:?}: {:#?}",
            self.code,
            self.findings
        );
        let errors = self.at("error", check);
        let all = errors.join("\n");
        ensure!(
            !errors.is_empty(),
            "nothing is wrong with {check}: {:#?}",
            self.findings
        );
        says(&all, words)
    }
}

/// Calls the command about a daemon and a containerd's socket and file.
fn doctor(host: &Host, daemon: &Config, socket: &Path, file: &Path) -> Result<Found> {
    let mut doctor = command(host, daemon, &["doctor", "--json"]);
    doctor.arg("--containerd-address").arg(socket);
    doctor.arg("--containerd-config").arg(file);
    let ended = run(&mut doctor)?;
    let report: Value = serde_json::from_str(&ended.stdout)
        .with_context(|| format!("not JSON: {}{}", ended.stdout, ended.stderr))?;
    let findings = report["findings"].as_array().context("no findings")?;
    Ok(Found {
        code: ended.status.code(),
        findings: findings.clone(),
    })
}

fn about(host: &Host, daemon: &Config, containerd: &Containerd) -> Result<Found> {
    doctor(
        host,
        daemon,
        &containerd.socket(),
        &containerd.config_file(),
    )
}

/// The usual configuration of a test's containerd, with what a good one has besides.
fn complete(config: &Config) -> impl FnOnce(String) -> String {
    let exports = format!(
        "capabilities = [\"remap-ids\"]\n[proxy_plugins.nix.exports]\nroot = {:?}\n\
         enable_remote_snapshot_annotations = \"true\"",
        config.root()
    );
    move |text| text.replacen("capabilities = []", &exports, 1)
}

#[test]
fn a_machine_where_everything_fits_is_healthy() {
    test(|host| {
        let config = Config::new(host, "daemon");
        let daemon = Daemon::start(&config)?;
        let dir = Store::new(host)?.build("dir", "$busybox mkdir $out", &[])?;
        let label = format!("{NIX_STORE_PATH}0");
        daemon
            .snapshots()?
            .prepare("active", "", &[(&label, dir.path())])?;
        let containerd = Containerd::start_edited(host, &config, complete(&config))?;

        let found = about(host, &config, &containerd)?;
        ensure!(found.code == Some(0), "{:#?}", found.findings);
        ensure!(found.errors().is_empty(), "{:#?}", found.findings);
        for (check, words) in [
            ("configuration", "valid"),
            ("kernel", "can mount overlays"),
            ("daemon", "serves on"),
            ("nix", "the store is reached"),
            ("gc-roots", "all 1 GC roots"),
            ("containerd", "has loaded the snapshotter nix"),
            ("containerd-config", "proxy_plugins.nix leads to the daemon"),
            ("containerd-config", "unpacks for nix and overlayfs"),
        ] {
            let fine = found.at("ok", check).join("\n");
            ensure!(fine.contains(words), "{check}: {:#?}", found.findings);
        }
        ensure!(
            found.at("warning", "containerd-config").is_empty(),
            "{:#?}",
            found.findings
        );
        says(&found.at("note", "cri").join("\n"), &["disabled"])?;

        // The same for people.
        let mut doctor = command(host, &config, &["doctor"]);
        doctor.arg("--containerd-address").arg(containerd.socket());
        doctor
            .arg("--containerd-config")
            .arg(containerd.config_file());
        let ended = run(&mut doctor)?;
        ensure!(ended.status.success(), "{ended:?}");
        says(&ended.stdout, &["ok       daemon", "errors: 0"])
    });
}

#[test]
fn a_containerd_that_was_told_wrong_is_examined() {
    test(|host| {
        let config = Config::new(host, "daemon");
        let _daemon = Daemon::start(&config)?;
        let socket = config.address().display().to_string();

        // The proxy leads elsewhere, for containerd that runs and in its file.
        let elsewhere = |text: String| complete(&config)(text).replace(&socket, "/run/other.sock");
        let containerd = Containerd::start_edited(host, &config, elsewhere)?;
        let found = about(host, &config, &containerd)?;
        let address = format!("address = \\\"{socket}\\\"");
        found.fails("containerd-config", &["/run/other.sock", &address])?;
        found.fails("containerd", &["no snapshotter at", &socket])?;

        // The file has been mended, and containerd does not know yet.
        let file = containerd.config_file();
        let mended = fs::read_to_string(&file)?.replace("/run/other.sock", &socket);
        fs::write(&file, mended)?;
        let found = about(host, &config, &containerd)?;
        found.fails(
            "containerd",
            &["no snapshotter at", "systemctl restart containerd"],
        )?;
        ensure!(
            found.at("error", "containerd-config").is_empty(),
            "{:#?}",
            found.findings
        );
        containerd.restart()?;
        let found = about(host, &config, &containerd)?;
        ensure!(found.code == Some(0), "{:#?}", found.findings);
        drop(containerd);

        // A snapshotter that does not exist: containerd itself says that a service is not there.
        let unknown = |text: String| {
            complete(&config)(text).replace(
                "snapshotter = \"nix\", differ",
                "snapshotter = \"nowhere\", differ",
            )
        };
        let containerd = Containerd::start_edited(host, &config, unknown)?;
        let found = about(host, &config, &containerd)?;
        found.fails("containerd-config", &["nowhere", "unpack_config = ["])?;
        found.fails("containerd", &["has not loaded the transfer service"])?;
        Ok(())
    });
}

#[test]
fn files_of_containerd_are_read_with_their_imports() {
    test(|host| {
        let config = Config::new(host, "daemon");
        let _daemon = Daemon::start(&config)?;
        let containerd = Containerd::start_edited(host, &config, complete(&config))?;
        let good = fs::read_to_string(containerd.config_file())?;
        let file = host.dir().join("containerd.toml");
        let look = |text: &str| -> Result<Found> {
            fs::write(&file, text)?;
            doctor(host, &config, &containerd.socket(), &file)
        };
        let socket = config.address().display().to_string();

        for (from, to, words) in [
            (
                "[proxy_plugins.nix]",
                "[proxy_plugins.nix.unread]",
                &["address = "][..],
            ),
            ("type = \"snapshot\"", "type = \"diff\"", &["type", "diff"]),
            (
                &*format!("address = {socket:?}"),
                &*format!("address = \"unix://{socket}\""),
                &["unix://"],
            ),
            ("\"remap-ids\"", "\"rebase\"", &["rebase"]),
            ("version = 2\n", "version = \n", &["no TOML", "line 1"]),
        ] {
            ensure!(good.contains(from), "{from:?} is not in {good}");
            let found = look(&good.replacen(from, to, 1))?;
            found.fails("containerd-config", words)?;
        }

        // What is imported wins.
        fs::create_dir(host.dir().join("conf.d"))?;
        let drop_in = host.dir().join("conf.d/nix.toml");
        fs::write(
            &drop_in,
            "version = 2\n[proxy_plugins.nix]\ntype = \"snapshot\"\naddress = \"/o\"\n",
        )?;
        let found = look(&format!("imports = [\"conf.d/*.toml\"]\n{good}"))?;
        found.fails("containerd-config", &["\\\"/o\\\""])?;

        let found = doctor(
            host,
            &config,
            &containerd.socket(),
            Path::new("/nowhere.toml"),
        )?;
        found.fails(
            "containerd-config",
            &["/nowhere.toml", "--containerd-config"],
        )
    });
}

#[test]
fn what_does_not_run_is_told() {
    test(|host| {
        let config = Config::new(host, "daemon");
        // Once, so that the configuration file is there.
        Daemon::start(&config)?.stop()?;
        let nobody = host.dir().join("nobody");
        let found = doctor(host, &config, &nobody, Path::new("/nowhere.toml"))?;
        let socket = config.address().display().to_string();
        found.fails("daemon", &[&socket, "systemctl start nix-snapshotter"])?;
        let absent = found.at("warning", "containerd").join("\n");
        says(
            &absent,
            &[&nobody.display().to_string(), "--containerd-address"],
        )?;

        // Something that is no daemon serves there.
        let containerd = Containerd::start(host, &config)?;
        let other = Config::new(host, "other").address_at(&containerd.socket());
        fs::create_dir(host.dir().join("other"))?;
        fs::write(other.file(), format!("address = {:?}", other.address()))?;
        let found = about(host, &other, &containerd)?;
        found.fails("daemon", &[&containerd.socket().display().to_string()])?;

        fs::write(other.file(), "rot = \"/a\"")?;
        let found = about(host, &other, &containerd)?;
        found.fails("configuration", &["`rot`", "`root`"])
    });
}

#[test]
fn nix_is_asked_on_the_path_of_the_daemon() {
    test(|host| {
        let config = Config::new(host, "daemon");
        let containerd = Containerd::start(host, &config)?;
        // A PATH with everything but Nix.
        let bin = host.dir().join("bin");
        fs::create_dir(&bin)?;
        let without_nix = config.clone().environment("PATH", &bin);
        let mut daemon = Daemon::start(&without_nix)?;
        let found = about(host, &config, &containerd)?;
        found.fails("nix", &["PATH of the daemon", "Environment=PATH"])?;
        daemon.stop()?;

        // One that is too old, one that does not run, and one that has no store.
        for (script, level, words) in [
            ("echo nix-store '(Nix)' 2.3.16", "warning", "2.3.16"),
            ("echo broken >&2; exit 1", "error", "broken"),
        ] {
            e2e::daemon::write_script(&bin.join("nix-store"), script)?;
            let mut daemon = Daemon::start(&without_nix)?;
            let found = about(host, &config, &containerd)?;
            says(&found.at(level, "nix").join("\n"), &[words, "2.18"])?;
            daemon.stop()?;
        }

        for (settings, level, words) in [
            ("substituters =", "warning", "no substituters"),
            ("require-sigs = false", "warning", "require-sigs"),
            (
                "substituters = https://cache.example/\ntrusted-public-keys =",
                "error",
                "trusted-public-keys",
            ),
            (
                "substituters = https://cache.example/",
                "ok",
                "missing paths come from",
            ),
        ] {
            let _daemon = Daemon::start(&config)?;
            let mut doctor = command(host, &config, &["doctor", "--json"]);
            let ended = run(doctor.env("NIX_CONFIG", settings))?;
            let report: Value = serde_json::from_str(&ended.stdout)?;
            let findings = report["findings"]
                .as_array()
                .context("no findings")?
                .clone();
            let found = Found {
                code: ended.status.code(),
                findings,
            };
            says(&found.at(level, "nix-settings").join("\n"), &[words])?;
        }
        let _daemon = Daemon::start(&config.clone().line("store_dir = \"/gnu/store\""))?;
        let found = about(host, &config, &containerd)?;
        found.fails("nix", &["/gnu/store", "store_dir = "])
    });
}

#[test]
fn roots_that_hold_nothing_are_found() {
    test(|host| {
        let config = Config::new(host, "daemon");
        let daemon = Daemon::start(&config)?;
        let containerd = Containerd::start(host, &config)?;
        let dir = Store::new(host)?.build("dir", "$busybox mkdir $out", &[])?;
        let label = format!("{NIX_STORE_PATH}0");
        daemon
            .snapshots()?
            .prepare("layer", "", &[(&label, dir.path())])?;
        let found = about(host, &config, &containerd)?;
        ensure!(
            found.at("error", "gc-roots").is_empty(),
            "{:#?}",
            found.findings
        );

        // Somebody has tidied up in Nix's own directory.
        let layers = config.root().join("gcroots");
        let auto = Path::new("/nix/var/nix/gcroots/auto");
        let mut removed = 0;
        for entry in fs::read_dir(auto)? {
            let link = entry?.path();
            if fs::read_link(&link)?.starts_with(&layers) {
                fs::remove_file(link)?;
                removed += 1;
            }
        }
        ensure!(removed == 1, "{removed} indirect roots");
        let found = about(host, &config, &containerd)?;
        found.fails("gc-roots", &["1 of 1", "unknown to Nix", "--add-root"])?;
        let line = found.at("error", "gc-roots").remove(0);
        let remedy: Value = serde_json::from_str(&line)?;
        let remedy = remedy["remedy"].as_str().context("no remedy")?.to_owned();
        succeed(Command::new("sh").args(["-c", &remedy]))?;
        let found = about(host, &config, &containerd)?;
        ensure!(
            found.at("error", "gc-roots").is_empty(),
            "{:#?}",
            found.findings
        );

        // And a path that is gone.
        let link: PathBuf = layers.join("1/another");
        symlink("/nix/store/00000000000000000000000000000000-gone", link)?;
        let found = about(host, &config, &containerd)?;
        found.fails("gc-roots", &["gone from /nix/store", "nix-store --realise"])
    });
}

#[test]
fn archives_that_no_image_comes_from_are_found() {
    test(|host| {
        let socket = host.dir().join("containerd");
        let config = Config::new(host, "daemon")
            .line(format!("image_service.containerd_address = {socket:?}"));
        let containerd = Containerd::start(host, &config)?;
        symlink(containerd.socket(), &socket)?;
        let archive = Store::new(host)?.build("archive", "echo > $out", &[])?;
        let name = archive.path().trim_start_matches("/nix/store/");
        let hold = || {
            let root = config.root().join("images").join(name).join("path");
            let mut hold = Command::new("nix-store");
            hold.args(["--realise", archive.path(), "--add-root"]);
            succeed(hold.arg(root))
        };
        // One that a daemon has left which does not run.
        Daemon::start(&config)?.stop()?;
        hold()?;
        let found = about(host, &config, &containerd)?;
        let said = found.at("warning", "image-archives").join("\n");
        says(&said, &[name, "1 of 1", "systemctl start nix-snapshotter"])?;

        // The way out.
        let daemon = Daemon::start(&config)?;
        poll("the release of the archive", SETTLE, || {
            let found = about(host, &config, &containerd)?;
            Ok(when(found.at("warning", "image-archives").is_empty()))
        })?;
        drop(daemon);

        // Nobody releases one without the image service.
        hold()?;
        let without = config.clone().line("image_service.enable = false");
        let _daemon = Daemon::start(&without)?;
        let found = about(host, &without, &containerd)?;
        let said = found.at("warning", "image-archives").join("\n");
        let dir = config.root().join("images").display().to_string();
        says(
            &said,
            &[name, "image_service.enable", &format!("rm -r {dir}")],
        )?;
        fs::remove_dir_all(&dir)?;
        let found = about(host, &without, &containerd)?;
        ensure!(
            found.at("warning", "image-archives").is_empty(),
            "{:#?}",
            found.findings
        );

        // Their roots are roots like those of layers.
        hold()?;
        let nobodys = "00000000000000000000000000000000-gone";
        let link = config.root().join("images").join(nobodys);
        fs::create_dir(&link)?;
        symlink(format!("/nix/store/{nobodys}"), link.join("path"))?;
        let found = about(host, &without, &containerd)?;
        found.fails("gc-roots", &["1 of 2", nobodys])
    });
}
