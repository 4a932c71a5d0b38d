//! How fast a large layer goes to a registry, beside skopeo.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use super::{Table, in_turns, timed};
use crate::{
    host::{Host, unique},
    image::{Image, Layer},
    process::succeed,
    registry::{Registry, Settings},
};

/// The size of the layer, whose bytes do not repeat.
const BYTES: usize = 256 << 20;

/// `nix2container push` and `skopeo copy` of one archive to a registry on this machine, each time
/// to a new one: skopeo remembers which has a blob, and has it mounted instead. It is told to leave the layer as it is: it compresses it otherwise,
/// which takes longer.
///
/// # Errors
/// What the programs say.
pub fn pushing(host: &Host, table: &mut Table) -> Result<()> {
    let mut content = vec![0; BYTES];
    fastrand::Rng::with_seed(1).fill(&mut content);
    let layer = Layer::default().file("content", 0o644, &content)?;
    drop(content);
    let archive = host.dir().join(unique("archive"));
    Image::new("bench:latest").layer(layer).write(&archive)?;
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
        table.times("push of 256 MiB", subject, times);
    }
    Ok(())
}
