//! What cannot work is refused with a message that names the thing and the way out, and leaves nothing.

use std::{fs, os::unix::net::UnixStream, path::Path, process::Command, thread, time::Duration};

use anyhow::{Result, ensure};
use e2e::{
    daemon::{Config, Daemon, Kept},
    host::{Host, test},
    image::{NIX_CLOSURE, NIX_STORE_PATH},
    process::{SETTLE, is_alive, poll, processor_time, run, succeed, when},
    snapshots::{Snapshots, refused, says},
    store::Store,
};
use rustix::mount::{MountFlags, mount_bind, mount_remount};
use tonic::Code;

/// A store path that nobody has and nobody can make.
const NOBODYS: &str = "/nix/store/00000000000000000000000000000000-nobody-has-this";

/// A daemon, and what it keeps while it has no snapshot.
struct Empty {
    daemon: Daemon,
    snapshots: Snapshots,
    kept: Kept,
}

impl Empty {
    fn start(config: &Config) -> Result<Self> {
        let daemon = Daemon::start(config)?;
        Ok(Self {
            snapshots: daemon.snapshots()?,
            kept: daemon.config().kept()?,
            daemon,
        })
    }

    /// Prepares a layer with this label, which must fail and leave nothing: no row, no
    /// directory, no GC root.
    fn refuses(&self, label: &str, value: &str, code: Code, words: &[&str]) -> Result<()> {
        for key in ["extract", "container"] {
            refused(
                self.snapshots.prepare(key, "", &[(label, value)]),
                code,
                words,
            )?;
            refused(self.snapshots.view(key, "", &[(label, value)]), code, words)?;
        }
        ensure!(
            self.snapshots.list(&[])?.is_empty(),
            "{label} = {value} left a row"
        );
        self.daemon.keeps_only(&self.kept)
    }
}

fn label() -> String {
    format!("{NIX_STORE_PATH}0")
}

/// Checks that a daemon with this line in its configuration refuses to start, and that
/// `check-config` says the same.
fn config_refused(host: &Host, line: &str, words: &[&str]) -> Result<()> {
    let config = Config::new(host, "daemon").line(line);
    let said = config.refused()?;
    let file = config.file().display().to_string();
    says(&said, words)?;
    says(&said, &[&file])?;
    ensure!(!config.root().exists(), "{line} left a root");
    ensure!(!config.address().exists(), "{line} left a socket");

    let mut check = Command::new(host.nix_snapshotter());
    let said = run(check.arg("check-config").arg(config.file()))?.failure()?;
    says(&said, words)?;
    says(&said, &[&file])
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_known_keys() {
    test(|host| {
        config_refused(
            host,
            "sync_removal = true",
            &[
                "line 3",
                "sync_removal",
                "sync_remove",
                "external_builder",
                "image_service",
            ],
        )?;
        config_refused(
            host,
            "[image_service]\nenabled = true",
            &["line 4", "enabled", "`enable`", "containerd_address"],
        )
    });
}

#[test]
fn a_value_of_the_wrong_type_is_named_with_its_line() {
    test(|host| {
        config_refused(
            host,
            "sync_remove = \"yes\"",
            &["line 3", "sync_remove", "boolean"],
        )?;
        config_refused(
            host,
            "shutdown_timeout = -1",
            &["line 3", "shutdown_timeout"],
        )?;
        config_refused(host, "root = = 3", &["line 3"])
    });
}

#[test]
fn a_value_that_cannot_work_is_named_by_its_key() {
    test(|host| {
        for (line, key) in [
            ("external_builder = \"builder\"", "external_builder"),
            ("store_dir = \"nix/store\"", "store_dir"),
            ("mount_options = [\"upperdir=/etc\"]", "mount_options"),
        ] {
            let config = Config::new(host, "daemon").line(line);
            says(&config.refused()?, &[key])?;
            ensure!(!config.root().exists(), "{line} left a root");
        }
        Ok(())
    });
}

#[test]
fn a_configuration_that_cannot_be_read_is_named() {
    test(|host| {
        // Root may read every file, so it is one that is missing, and one that is a directory.
        for file in [host.dir().join("missing.toml"), host.dir().to_owned()] {
            for command in [&["--config"][..], &["check-config"]] {
                let mut daemon = Command::new(host.nix_snapshotter());
                daemon
                    .args(["--root", "/dev/null/root"])
                    .args(command)
                    .arg(&file);
                let said = run(&mut daemon)?.failure()?;
                says(&said, &[&file.display().to_string()])?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_valid_configuration_is_called_valid() {
    test(|host| {
        let daemon = Daemon::start(&Config::new(host, "daemon"))?;
        let mut check = Command::new(host.nix_snapshotter());
        succeed(check.arg("check-config").arg(daemon.config().file()))?;
        Ok(())
    });
}

#[test]
fn what_is_empty_is_as_if_it_were_not_there() {
    test(|host| {
        let variables = ["CONFIG", "ADDRESS", "ROOT", "LOG_LEVEL", "LOG_FORMAT"];
        let config = Config::new(host, "daemon").line("external_builder = \"\"");
        let config = variables.iter().fold(config, |config, name| {
            config.environment(&format!("NIX_SNAPSHOTTER_{name}"), "")
        });
        let daemon = Daemon::start(&config)?;
        let object = Store::new(host)?.build("object", "echo content > $out", &[])?;
        let labels = [(&*label(), object.path())];
        ensure!(daemon.snapshots()?.prepare("container", "", &labels)?.len() == 2);
        Ok(())
    });
}

#[test]
fn a_root_that_cannot_be_written_is_named() {
    test(|host| {
        let dir = host.dir().join("read-only");
        fs::create_dir(&dir)?;
        mount_bind(&dir, &dir)?;
        mount_remount(&dir, MountFlags::BIND | MountFlags::RDONLY, "")?;
        for root in [dir.clone(), dir.join("below")] {
            let config = Config::new(host, "daemon").root_at(&root);
            says(&config.refused()?, &[&dir.display().to_string(), "--root"])?;
            ensure!(!config.address().exists());
        }
        ensure!(fs::read_dir(&dir)?.next().is_none());

        let file = host.dir().join("file");
        fs::write(&file, "precious")?;
        let said = Config::new(host, "daemon").root_at(&file).refused()?;
        says(&said, &[&file.display().to_string()])?;
        ensure!(fs::read_to_string(&file)? == "precious");
        Ok(())
    });
}

#[test]
fn a_root_on_a_file_system_without_d_type_is_refused() {
    test(|host| {
        host.needs("mke2fs")?;
        // Of what current kernels have, ext4 made without the feature `filetype`.
        let image = host.dir().join("image");
        let mount_point = host.dir().join("no-d-type");
        fs::create_dir(&mount_point)?;
        let mut make = Command::new("mke2fs");
        succeed(
            make.args(["-q", "-t", "ext4", "-O", "^filetype"])
                .arg(&image)
                .arg("4M"),
        )?;
        succeed(
            Command::new("mount")
                .args(["-o", "loop"])
                .arg(&image)
                .arg(&mount_point),
        )?;

        let root = mount_point.join("root");
        let config = Config::new(host, "daemon").root_at(&root);
        let said = config.refused()?;
        says(&said, &[&root.display().to_string(), "d_type"])?;
        ensure!(!config.address().exists());
        Ok(())
    });
}

#[test]
fn a_label_that_is_no_store_path_is_named() {
    test(|host| {
        let empty = Empty::start(&Config::new(host, "daemon"))?;
        let hash = "8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr";
        let long = format!("/nix/store/{hash}-{}", "a".repeat(4956));
        ensure!(long.len() == 5000);
        for value in [
            "",
            "/",
            "hello",
            "/etc/passwd",
            "/nix/store",
            "/nix/store/..",
            &format!("/nix/store/../../etc/{hash}-a"),
            &format!("/nix/store/{hash}-a/../../../etc/passwd"),
            &format!("/gnu/store/{hash}-a"),
            &format!("/nix/store/{}-a", hash.to_uppercase()),
            &format!("/nix/store/{}-a", &hash[1..]),
            &format!("/nix/store/{hash}"),
            &format!("/nix/store/{hash}-a/bin/sh"),
            &format!("/nix/store/{hash}-a\n"),
            &format!("/nix/store/{hash}-a:/etc"),
            &format!("-f /nix/store/{hash}-a"),
            &long,
        ] {
            let shown: String = value.chars().take(40).filter(|c| *c != '\n').collect();
            for label in [&label(), NIX_CLOSURE] {
                empty.refuses(label, value, Code::InvalidArgument, &[label, &shown])?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_store_object_that_is_no_closure_info_is_named() {
    test(|host| {
        let empty = Empty::start(&Config::new(host, "daemon"))?;
        let store = Store::new(host)?;
        let way_out = "closureInfo";
        for (name, script) in [
            ("no-store-paths", "$busybox mkdir $out"),
            ("a-file", "echo x > $out"),
            (
                "a-link",
                "$busybox mkdir $out; $busybox ln -s /etc/passwd $out/store-paths",
            ),
            ("a-dir", "$busybox mkdir -p $out/store-paths"),
        ] {
            let object = store.build(name, script, &[])?;
            let words = [object.path(), "store-paths", way_out];
            empty.refuses(NIX_CLOSURE, object.path(), Code::InvalidArgument, &words)?;
        }

        let script = "$busybox mkdir $out; echo /etc/passwd > $out/store-paths";
        let object = store.build("foreign", script, &[])?;
        empty.refuses(
            NIX_CLOSURE,
            object.path(),
            Code::InvalidArgument,
            &["/etc/passwd"],
        )
    });
}

#[test]
fn nix_that_is_not_on_the_path_is_named() {
    test(|host| {
        let config = Config::new(host, "daemon").environment("PATH", "/nowhere");
        let empty = Empty::start(&config)?;
        let words = ["nix-store", "PATH"];
        empty.refuses(&label(), NOBODYS, Code::FailedPrecondition, &words)?;
        // Ordinary images need no Nix.
        empty.snapshots.layer("plain", "", &[])?;
        Ok(())
    });
}

#[test]
fn nix_has_its_say_about_a_path_that_cannot_be_had() {
    test(|host| {
        let empty = Empty::start(&Config::new(host, "daemon"))?;
        // What Nix itself says, whatever its version.
        let nix = run(Command::new("nix-store").args(["--realise", NOBODYS]))?.failure()?;
        let last = nix
            .lines()
            .rfind(|line| line.contains("error:"))
            .unwrap_or_default()
            .trim();
        ensure!(last.len() > "error:".len(), "{nix}");
        for label in [&label(), NIX_CLOSURE] {
            let words = ["nix-store", NOBODYS, last];
            empty.refuses(label, NOBODYS, Code::FailedPrecondition, &words)?;
        }

        // One that cannot be had among others that can.
        let object = Store::new(host)?.build("dir", "$busybox mkdir $out", &[])?;
        let second = format!("{NIX_STORE_PATH}1");
        let labels = [(&*label(), object.path()), (&*second, NOBODYS)];
        let answer = empty.snapshots.prepare("extract", "", &labels);
        refused(answer, Code::FailedPrecondition, &["nix-store", last])?;
        empty.daemon.keeps_only(&empty.kept)
    });
}

#[test]
fn a_builder_that_fails_is_quoted() {
    test(|host| {
        let config = Config::new(host, "daemon");
        let config = config.builder("ln -s \"$2\" \"$1\"; echo no luck with $2 >&2; exit 3")?;
        let empty = Empty::start(&config)?;
        for label in [&label(), NIX_CLOSURE] {
            let words = [
                "daemon/builder",
                "exit status: 3",
                &format!("no luck with {NOBODYS}"),
            ];
            empty.refuses(label, NOBODYS, Code::FailedPrecondition, &words)?;
        }
        Ok(())
    });
}

#[test]
fn a_builder_that_provides_nothing_is_found_out() {
    test(|host| {
        let empty = Empty::start(&Config::new(host, "daemon").builder("exit 0")?)?;
        let words = ["daemon/builder", NOBODYS];
        empty.refuses(&label(), NOBODYS, Code::FailedPrecondition, &words)
    });
}

/// A path of a store that Nix does not have, as a builder makes it that brings files by itself.
#[test]
fn a_builder_that_makes_another_link_or_none_past_nix_is_found_out() {
    test(|host| {
        let store_dir = host.dir().join("store");
        fs::create_dir(&store_dir)?;
        let path = store_dir.join("8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-brought");
        let path = path.display().to_string();
        for (name, script, words) in [
            ("none", "", ["not made the link", "`nix-store` failed"]),
            (
                "other",
                "; ln -s /elsewhere \"$1\"",
                ["\"/elsewhere\"", "GC root"],
            ),
        ] {
            let config = Config::new(host, name)
                .line(format!("store_dir = {store_dir:?}"))
                .builder(&format!("echo x > \"$2\"{script}"))?;
            let empty = Empty::start(&config)?;
            let program = format!("{name}/builder");
            let roots = config.root().join("gcroots").display().to_string();
            let words = [&*program, &path, &roots, words[0], words[1]];
            empty.refuses(&label(), &path, Code::FailedPrecondition, &words)?;
            empty.refuses(NIX_CLOSURE, &path, Code::FailedPrecondition, &words)?;
        }
        Ok(())
    });
}

#[test]
fn a_builder_that_does_not_exist_is_named() {
    test(|host| {
        let config = Config::new(host, "daemon").line("external_builder = \"/nowhere/builder\"");
        let empty = Empty::start(&config)?;
        let words = ["/nowhere/builder", "no such program"];
        empty.refuses(&label(), NOBODYS, Code::FailedPrecondition, &words)
    });
}

#[test]
fn a_builder_that_hangs_is_killed_with_its_children() {
    test(|host| {
        let pids = host.dir().join("pids");
        let script = format!(
            "echo $$ >> {0}; sleep 1000 & echo $! >> {0}; wait",
            pids.display()
        );
        let config = Config::new(host, "daemon")
            .line("realise_timeout = 5")
            .builder(&script)?;
        let empty = Empty::start(&config)?;
        let answer = empty
            .snapshots
            .prepare("extract", "", &[(&*label(), NOBODYS)]);
        let words = ["daemon/builder", NOBODYS, "5 s", "realise_timeout"];
        refused(answer, Code::DeadlineExceeded, &words)?;
        all_ended(&pids)?;
        ensure!(empty.snapshots.list(&[])?.is_empty());
        empty.daemon.keeps_only(&empty.kept)
    });
}

fn all_ended(pids: &Path) -> Result<()> {
    let pids = fs::read_to_string(pids)?;
    ensure!(pids.lines().count() == 2, "{pids}");
    for pid in pids.lines() {
        let pid = pid.parse()?;
        poll("the end of the builder", SETTLE, || {
            Ok(when(!is_alive(pid)))
        })?;
    }
    Ok(())
}

#[test]
fn clients_without_number_cost_no_processor_and_keep_nobody_out_for_good() {
    test(|host| {
        // After what the daemon itself has open, fewer are left than there are clients.
        let daemon =
            Daemon::start(&Config::new(host, "daemon").wrapped(&["prlimit", "--nofile=64"]))?;
        let clients: Vec<_> = (0..100)
            .map(|_| UnixStream::connect(daemon.config().address()))
            .collect::<Result<_, _>>()?;
        poll("the last file descriptor", SETTLE, || {
            let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))?.count();
            Ok(when(open == 64))
        })?;
        let before = processor_time(daemon.pid())?;
        thread::sleep(Duration::from_secs(1));
        let used = processor_time(daemon.pid())? - before;
        ensure!(
            used < Duration::from_millis(200),
            "it has used {used:?} of a second"
        );
        drop(clients);
        ensure!(daemon.snapshots()?.list(&[])?.is_empty());
        Ok(())
    });
}
