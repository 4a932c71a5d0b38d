//! What the image service costs: a pull by a store path beside containerd's own of an ordinary image,
//! and calls that go through it.

use std::{os::unix::fs::symlink, time::Instant};

use anyhow::{Context, Result};

use super::{Table, in_turns, timed};
use crate::{
    containerd::{Config, Containerd},
    cri::Cri,
    daemon::{self, Daemon},
    host::{Host, unique},
    image::{Image, Layer},
    node::{build, reference},
    process::succeed,
    registry::{Registry, Settings},
    store::Store,
};

const PATHS: usize = 200;
const BYTES: usize = 50_000;

/// How often a call is measured.
const CALLS: usize = 1000;

/// A node whose kubelet may ask either of the two.
struct Node {
    _daemon: Daemon,
    containerd: Containerd,
    direct: Cri,
    through: Cri,
}

impl Node {
    fn start(host: &Host) -> Result<Self> {
        let socket = host.dir().join(unique("containerd-socket"));
        let config = daemon::Config::new(host, &unique("daemon"))
            .line(format!("image_service.containerd_address = {socket:?}"));
        let daemon = Daemon::start(&config)?;
        let containerd = Containerd::start_with(host, &Config::with_cri("none"), &config)?;
        symlink(containerd.socket(), socket)?;
        Ok(Self {
            direct: Cri::connect(&containerd.socket())?,
            through: Cri::connect(config.address())?,
            _daemon: daemon,
            containerd,
        })
    }
}

/// `PullImage` of a closure of store paths that are there, and of an ordinary image of one layer with
/// as many bytes from a registry on this machine.
///
/// # Errors
/// What the programs say.
pub fn pulling(host: &Host, table: &mut Table) -> Result<()> {
    let node = Node::start(host)?;
    let store = Store::new(host)?;
    let paths = store.incompressible(PATHS, BYTES)?;
    let info = store.closure_info(&paths.iter().collect::<Vec<_>>())?;
    let file = build(host, &reference("bench"), &["/x"], info.path(), &[])?;
    let archive = store.add(&file, "nix-image-bench.tar")?;
    let by_path = format!("nix:0{archive}");

    let registry = Registry::start(host, Settings::default())?;
    let by_name = format!("{}/a:v1", registry.address());
    let mut content = vec![0; PATHS * BYTES];
    fastrand::Rng::with_seed(1).fill(&mut content);
    let ordinary = host.dir().join(unique("archive"));
    let layer = Layer::default().file("content", 0o644, &content)?;
    Image::new(&by_name).layer(layer).write(&ordinary)?;
    let mut push = std::process::Command::new(host.nix2container());
    succeed(
        push.args(["push", "--quiet", "--plain-http"])
            .arg(&ordinary),
    )?;

    let subjects = [
        ("containerd, an ordinary image", &node.direct, &by_name),
        ("an archive of 200 paths", &node.through, &by_path),
    ];
    let times = in_turns(&subjects, |(_, cri, image)| {
        let time = timed(|| cri.pull(image).map(drop).with_context(|| (*image).clone()))?;
        cri.remove_image(image)?;
        node.containerd.collect_garbage()?;
        Ok(time)
    })?;
    for ((subject, ..), times) in subjects.iter().zip(times) {
        table.times("PullImage, 10 MB", subject, times);
    }
    Ok(())
}

/// A call that is forwarded, beside the same to containerd.
///
/// # Errors
/// What the programs say.
pub fn forwarding(host: &Host, table: &mut Table) -> Result<()> {
    let node = Node::start(host)?;
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for _ in 0..CALLS {
        for (cri, times) in [(&node.direct, &mut direct), (&node.through, &mut through)] {
            let begun = Instant::now();
            cri.image_id("docker.io/library/none:latest")?;
            times.push(begun.elapsed());
        }
    }
    table.times("ImageStatus, 1,000 calls", "containerd", direct);
    table.times("ImageStatus, 1,000 calls", "through the daemon", through);
    Ok(())
}
