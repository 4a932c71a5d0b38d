//! What a large layer costs: how fast it goes to a registry, beside skopeo, and how much memory it
//! takes.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{Table, in_turns, timed};
use crate::{
    host::{Host, unique},
    image::{Image, Layer},
    process::{memory_kib, succeed},
    registry::{Registry, Settings},
};

/// The size of the layer that is pushed.
const PUSHED: usize = 1 << 30;

/// The size of the base that is built upon.
const BASE: usize = 2 << 30;

/// How often the memory of a program is looked at.
const INTERVAL: Duration = Duration::from_millis(2);

/// `nix2container push` and `skopeo copy` of one archive to a registry on this machine, each time
/// to a new one: skopeo remembers which has a blob, and has it mounted instead. It is told to leave
/// the layer as it is: it compresses it otherwise, which takes longer.
///
/// # Errors
/// What the programs say.
pub fn pushing(host: &Host, table: &mut Table) -> Result<()> {
    let archive = large(host, PUSHED)?;
    let archive = archive.to_str().context("a path in UTF-8")?;

    let subjects = ["skopeo copy", "nix2container push"];
    let times = in_turns(&subjects, |subject| {
        let registry = Registry::start(host, Settings::default())?;
        let name = format!("{}/a:v1", registry.address());
        let mut command = match *subject {
            "skopeo copy" => {
                let mut copy = Command::new("skopeo");
                copy.args(["copy", "--quiet", "--preserve-digests"])
                    .arg("--dest-tls-verify=false")
                    .arg(format!("oci-archive:{archive}"))
                    .arg(format!("docker://{name}"));
                copy
            }
            _ => {
                let mut push = Command::new(host.nix2container());
                push.args(["--quiet", "push", "--plain-http", "--ref", &name, archive]);
                push
            }
        };
        let time = timed(|| succeed(&mut command).map(drop))?;
        fs::remove_dir_all(registry.data())?;
        Ok(time)
    })?;
    for (subject, times) in subjects.iter().zip(times) {
        table.times("push of 1 GiB", subject, times);
    }
    Ok(())
}

/// The most resident memory, in kibibytes, of builds upon a large base and of a push of one.
///
/// # Errors
/// What the programs say.
pub fn peaks(host: &Host) -> Result<Vec<(&'static str, u64)>> {
    let base = large(host, BASE)?;
    let out = host.dir().join(unique("out"));
    let build = |compression: &str| {
        let mut build = Command::new(host.nix2container());
        build.args([
            "--quiet",
            "build",
            "--ref",
            "bench:latest",
            "--compression",
            compression,
        ]);
        build.arg("--from-image").arg(&base).arg(&out);
        peak_kib(&mut build)
    };
    let (plain, compressed) = (build("none")?, build("zstd")?);
    fs::remove_file(&out)?;
    let registry = Registry::start(host, Settings::default())?;
    let name = format!("{}/a:v1", registry.address());
    let mut push = Command::new(host.nix2container());
    push.args(["--quiet", "push", "--plain-http", "--ref", &name]);
    let pushed = peak_kib(push.arg(&base))?;
    fs::remove_file(base)?;
    Ok(vec![
        ("build upon a base of 2 GiB", plain),
        ("… with layers by zstd", compressed),
        ("push of that base", pushed),
    ])
}

/// An archive with one layer of so many bytes, which do not repeat.
fn large(host: &Host, bytes: usize) -> Result<PathBuf> {
    let mut content = vec![0; bytes];
    fastrand::Rng::with_seed(1).fill(&mut content);
    let layer = Layer::default().file("content", 0o644, &content)?;
    drop(content);
    let archive = host.dir().join(unique("archive"));
    Image::new("bench:latest").layer(layer).write(&archive)?;
    Ok(archive)
}

/// Runs a program and gives the most resident memory that it had, as the kernel notes it.
fn peak_kib(command: &mut Command) -> Result<u64> {
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let mut peak = 0;
    let ended = loop {
        // A process that has just ended has no memory any more.
        peak = memory_kib(child.id(), "VmHWM:").unwrap_or(peak);
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        thread::sleep(INTERVAL);
    };
    ensure!(ended.success() && peak > 0, "{command:?}: {ended}");
    Ok(peak)
}
