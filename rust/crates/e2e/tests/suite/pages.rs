//! What the pages of the documentation show and what the modules write: configurations are taken by
//! the programs that they are for, and the commands of this project exist.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    containerd::Config,
    host::{Host, test},
    process::succeed,
};
use toml::{Table, Value};
use yaml_rust2::{Yaml, YamlLoader};

/// What KubeletConfiguration may have: kubelet gets these in tests/kubernetes.
const KUBELET: [&str; 4] = [
    "apiVersion",
    "containerRuntimeEndpoint",
    "imageServiceEndpoint",
    "kind",
];

/// A block of code.
struct Block {
    /// The page, and the line before its text.
    place: String,
    language: String,
    text: String,
}

/// The top of the repository.
fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

/// The pages by their names, with their texts.
fn pages() -> Result<Vec<(String, String)>> {
    let top = top();
    let mut names = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    for entry in fs::read_dir(top.join("docs"))? {
        names.push(format!("docs/{}", entry?.file_name().display()));
    }
    names.sort();
    let read = |name: String| {
        let text = fs::read_to_string(top.join(&name)).with_context(|| name.clone())?;
        Ok((name, text))
    };
    names.into_iter().map(read).collect()
}

fn blocks(languages: &[&str]) -> Result<Vec<Block>> {
    let mut found: Vec<Block> = Vec::new();
    for (page, text) in pages()? {
        let mut open = false;
        for (number, line) in (1..).zip(text.lines()) {
            match line.trim_start().strip_prefix("```") {
                Some(_) if open => open = false,
                Some(language) => {
                    open = true;
                    found.push(Block {
                        place: format!("{page}:{number}"),
                        language: language.to_owned(),
                        text: String::new(),
                    });
                }
                None => {
                    if let Some(block) = found.last_mut().filter(|_| open) {
                        block.text += line;
                        block.text.push('\n');
                    }
                }
            }
        }
        ensure!(!open, "{page} has a block of code without an end");
    }
    found.retain(|block| languages.contains(&block.language.as_str()));
    ensure!(!found.is_empty(), "no page has a block of {languages:?}");
    Ok(found)
}

/// Configurations in TOML: those of containerd where `of_containerd`, and those of the daemon.
fn configurations(of_containerd: bool) -> Result<Vec<(Block, Table)>> {
    let is_containerds = |table: &Table| {
        ["version", "plugins", "proxy_plugins"]
            .iter()
            .any(|key| table.contains_key(*key))
    };
    let mut found = Vec::new();
    for block in blocks(&["toml"])? {
        let table: Table = block.text.parse().with_context(|| block.place.clone())?;
        if is_containerds(&table) == of_containerd {
            found.push((block, table));
        }
    }
    ensure!(!found.is_empty());
    Ok(found)
}

#[test]
fn the_daemon_takes_its_configurations() {
    test(|host| {
        for (block, _) in configurations(false)? {
            let file = host.dir().join("daemon.toml");
            fs::write(&file, &block.text)?;
            let mut check = Command::new(host.nix_snapshotter());
            succeed(check.arg("check-config").arg(&file)).context(block.place)?;
        }
        Ok(())
    });
}

#[test]
fn containerd_takes_its_configurations() {
    test(|host| {
        let formats = Config::formats()?;
        for (block, table) in configurations(true)? {
            let written = table.get("version").and_then(Value::as_integer);
            // A part of a file leaves it out.
            let version = written.unwrap_or(match block.text.contains("io.containerd.cri.v1.") {
                true => 3,
                false => 2,
            });
            if !formats.iter().any(|format| i64::from(*format) == version) {
                continue;
            }
            let head = match written {
                Some(_) => String::new(),
                None => format!("version = {version}\n"),
            };
            let dump = dumped(host, &(head + &block.text)).context(block.place.clone())?;
            // A newer format has keys in other places.
            if dump.get("version").and_then(Value::as_integer) == Some(version) {
                let (dump, table) = (Value::Table(dump), Value::Table(table));
                ensure!(has(&dump, &table), "{}: {dump}", block.place);
            } else if let Some(name) = snapshotter(&table, 2) {
                ensure!(snapshotter(&dump, 3) == Some(name), "{}", block.place);
            }
        }
        Ok(())
    });
}

#[test]
fn containerd_knows_every_key_that_the_modules_write() {
    test(|host| {
        let formats = Config::formats()?;
        let newest = formats.into_iter().max().map(i64::from);
        let mut found = 0;
        for entry in fs::read_dir(top().join("tests/golden"))? {
            let files = entry?.path().join("files");
            for file in ["containerd.toml", "containerd-1.7.toml"].map(|name| files.join(name)) {
                if !file.try_exists()? {
                    continue;
                }
                let text = fs::read_to_string(&file)?;
                let table: Table = text.parse().with_context(|| file.display().to_string())?;
                if table.get("version").and_then(Value::as_integer) != newest {
                    continue;
                }
                let dump = dumped(host, &text).with_context(|| file.display().to_string())?;
                let (dump, table) = (Value::Table(dump), Value::Table(table));
                ensure!(has(&dump, &table), "{}: {dump}", file.display());
                found += 1;
            }
        }
        ensure!(found >= 4, "only {found} configurations");
        Ok(())
    });
}

/// What containerd makes of a configuration. It leaves out keys that it does not know.
fn dumped(host: &Host, text: &str) -> Result<Table> {
    let file = host.dir().join("containerd.toml");
    fs::write(&file, text)?;
    let mut dump = Command::new("containerd");
    dump.arg("--config").arg(&file).args(["config", "dump"]);
    Ok(succeed(&mut dump)?.parse()?)
}

/// The snapshotter of the CRI.
fn snapshotter(table: &Table, version: u32) -> Option<&str> {
    let plugins = table.get("plugins")?;
    match version {
        2 => plugins
            .get("io.containerd.grpc.v1.cri")?
            .get("containerd")?
            .get("snapshotter")?,
        _ => plugins
            .get("io.containerd.cri.v1.images")?
            .get("snapshotter")?,
    }
    .as_str()
}

/// Whether a configuration has all that a part of one has.
fn has(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Table(whole), Value::Table(part)) => part
            .iter()
            .all(|(key, part)| whole.get(key).is_some_and(|whole| has(whole, part))),
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len()
                && whole.iter().zip(part).all(|(whole, part)| has(whole, part))
        }
        _ => whole == part,
    }
}

#[test]
fn documents_of_yaml_are_what_they_say() {
    test(|_| {
        for block in blocks(&["yaml"])? {
            let documents =
                YamlLoader::load_from_str(&block.text).with_context(|| block.place.clone())?;
            ensure!(!documents.is_empty(), "{} is empty", block.place);
            for document in &documents {
                check_document(document).with_context(|| block.place.clone())?;
            }
        }
        Ok(())
    });
}

fn check_document(document: &Yaml) -> Result<()> {
    let keys: Vec<&str> = document
        .as_hash()
        .context("no mapping")?
        .keys()
        .filter_map(Yaml::as_str)
        .collect();
    let text = |key: &str| document[key].as_str();
    match (text("apiVersion"), text("kind")) {
        (Some("v1"), Some("Pod")) => {
            let images: Vec<_> = document["spec"]["containers"]
                .as_vec()
                .context("no containers")?
                .iter()
                .map(|container| container["image"].as_str())
                .collect();
            ensure!(!images.is_empty() && images.iter().all(Option::is_some));
        }
        (Some("kubelet.config.k8s.io/v1beta1"), Some("KubeletConfiguration")) => {
            ensure!(
                keys.iter().all(|key| KUBELET.contains(key)),
                "tests/kubernetes gives kubelet none of these: {keys:?}"
            );
        }
        (Some("kubeadm.k8s.io/v1beta4"), Some("ClusterConfiguration")) => {}
        // crictl.yaml, and prometheus.yml.
        (None, None) if keys == ["runtime-endpoint", "image-endpoint"] => {}
        (None, None) if keys == ["scrape_configs"] => {}
        (version, kind) => bail!("nobody knows {version:?}, {kind:?} with {keys:?}"),
    }
    for key in keys
        .iter()
        .filter(|key| key.to_lowercase().contains("endpoint"))
    {
        let daemon = "unix:///run/nix-snapshotter/nix-snapshotter.sock";
        let containerd = "unix:///run/containerd/containerd.sock";
        let wanted = match key.starts_with("image") {
            true => daemon,
            false => containerd,
        };
        ensure!(text(key) == Some(wanted), "{key} is no {wanted}");
    }
    Ok(())
}

#[test]
fn the_commands_of_this_project_exist() {
    test(|host| {
        let programs = [
            ("nix-snapshotter", host.nix_snapshotter()),
            ("nix2container", host.nix2container()),
        ];
        for (name, program) in programs {
            let lines: Vec<_> = command_lines()?
                .into_iter()
                .filter(|(_, line)| line.split_whitespace().next() == Some(name))
                .collect();
            ensure!(!lines.is_empty(), "no page has a command of {name}");
            for (place, line) in lines {
                check_command(host, program, &line)
                    .with_context(|| format!("{place} has `{line}`"))?;
            }
        }
        Ok(())
    });
}

/// Commands with their places: those behind a prompt, those of scripts, and those in the text.
fn command_lines() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for block in blocks(&["console", "sh"])? {
        for line in block.text.lines() {
            let prompted = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "));
            let command = match block.language.as_str() {
                "sh" => Some(line),
                _ => prompted,
            };
            let command = command.and_then(|line| line.split("  #").next());
            found.extend(command.map(|line| (block.place.clone(), line.trim().to_owned())));
        }
    }
    for (page, text) in pages()? {
        let mut open = false;
        for (number, line) in (1..).zip(text.lines()) {
            let is_fence = line.trim_start().starts_with("```");
            open ^= is_fence;
            if !open && !is_fence {
                let quoted = line.split('`').skip(1).step_by(2);
                let quoted = quoted.filter(|quoted| quoted.contains(' '));
                found.extend(quoted.map(|line| (format!("{page}:{number}"), line.to_owned())));
            }
        }
    }
    Ok(found)
}

/// A command line has the subcommand and the flags of a program.
fn check_command(host: &Host, program: &Path, line: &str) -> Result<()> {
    let help = |words: &[&str]| {
        let mut command = Command::new(program);
        succeed(command.current_dir(host.dir()).args(words).arg("--help"))
    };
    let of_program = help(&[])?;
    // What another command gives is its own.
    let own = line.split("$(").next().unwrap_or_default();
    let mut words = own
        .split_whitespace()
        .skip(1)
        .map(|word| word.trim_matches(['[', ']', ',']));
    let (mut flags, mut subcommand) = (Vec::new(), None);
    while let Some(word) = words.next() {
        if word.starts_with("--") {
            flags.push(word);
            if of_program.contains(&format!("{word} <")) {
                words.next();
            }
        } else if subcommand.is_none() {
            subcommand = Some(word);
        }
    }
    let subcommand = subcommand.context("no subcommand")?;
    let of_subcommand = match subcommand {
        "help" => String::new(),
        _ => help(&[subcommand])?,
    };
    let known: Vec<&str> = [&of_program, &of_subcommand]
        .iter()
        .flat_map(|help| help.split([' ', '\n', ',', '=', '[']))
        .collect();
    for flag in flags {
        let name = flag.split('=').next().unwrap_or_default();
        ensure!(known.contains(&name), "{subcommand} has no {name}");
    }
    Ok(())
}
