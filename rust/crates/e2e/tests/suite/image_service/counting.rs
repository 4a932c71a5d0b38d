//! What kubelet hears of the store: how full it is, and what each image has there.

use std::{
    fs,
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{
    containerd::NIX,
    cri::Cri,
    daemon,
    host::{Host, test},
    nix_daemon::NixDaemon,
    node::{build, reference},
    process::{poll, when},
    store::nar_size,
};
use tonic::{Code, Status};

use super::{Cluster, archive, image};

/// How long it may take until kubelet hears of what is new. What is known is taken for true for half
/// of that.
const HEARING: Duration = Duration::from_secs(60);

/// How long an answer may take, which comes from memory.
const AT_ONCE: Duration = Duration::from_secs(5);

fn counting(daemon: daemon::Config) -> daemon::Config {
    // Not for ever, where an answer does wait for Nix.
    daemon
        .line("image_service.count_store_paths = true")
        .line("realise_timeout = 20")
}

/// The bytes in use in the file system of images.
fn used(cri: &Cri) -> Result<u64> {
    let (_, used) = cri.image_usage()?.into_iter().next().context("nothing")?;
    Ok(used)
}

/// The size of the closure of hello.
fn closure(host: &Host) -> Result<u64> {
    let info = host.fixture("hello-closure-info")?;
    let paths = fs::read_to_string(format!("{info}/store-paths"))?;
    paths.lines().map(nar_size).sum()
}

/// Waits until kubelet hears of this many bytes of the store at least.
fn hears_of(cluster: &Cluster, bytes: u64) -> Result<()> {
    poll("the bytes of the store", HEARING, || {
        // containerd counts what is its own anew every ten seconds.
        let (ours, theirs) = (used(&cluster.images)?, used(&cluster.node.cri)?);
        Ok(when(ours >= theirs + bytes))
    })
}

#[test]
fn no_answer_waits_for_nix() {
    test(|host| {
        let nix_daemon = NixDaemon::start(host, [])?;
        let daemon = |daemon| counting(nix_daemon.client(daemon));
        let mut cluster = Cluster::start_with(host, daemon, |config| config)?;
        let archive = archive(host, &[])?;
        cluster.images.pull(&image(&archive))?;

        nix_daemon.freeze(true)?;
        cluster.node.daemon.stop()?;
        cluster.node.daemon.start_again()?;
        cluster.images.wait()?;
        for _ in 0..3 {
            let begun = Instant::now();
            used(&cluster.images)?;
            cluster.images.image_sizes(&image(&archive))?;
            let took = begun.elapsed();
            ensure!(took < AT_ONCE, "{took:?}");
        }
        nix_daemon.freeze(false)?;
        hears_of(&cluster, closure(host)?)
    });
}

#[test]
fn a_path_that_nix_does_not_know_hides_no_other() {
    test(|host| {
        let cluster = Cluster::start_with(host, counting, |config| config)?;
        // In the store, held, and not registered.
        let stray = "/nix/store/22222222222222222222222222222222-not-registered";
        let roots = cluster.node.daemon.config().root().join("gcroots/4711");
        fs::create_dir_all(&roots)?;
        symlink(stray, roots.join("path"))?;
        fs::create_dir(stray)?;
        let heard = (|| {
            let archive = archive(host, &[])?;
            cluster.images.pull(&image(&archive))?;
            hears_of(&cluster, closure(host)? + nar_size(archive.path())?)
        })();
        fs::remove_dir(stray)?;
        heard
    });
}

#[test]
fn an_image_has_its_closure_and_its_archive_in_its_size() {
    test(|host| {
        let cluster = Cluster::start_with(host, counting, |config| config)?;
        let (ours, theirs) = (&cluster.images, &cluster.node.cri);
        let pause = theirs.images()?;
        let pause = pause.first().context("no image for pods")?;

        let archive = archive(host, &[])?;
        ours.pull(&image(&archive))?;
        // One that was not pulled here, and names each path.
        let loaded = reference("loaded");
        let hello = format!("{}/bin/hello", host.fixture("hello")?);
        let info = host.fixture("hello-closure-info")?;
        let flags = ["--annotations", "per-path"];
        let file = build(host, &loaded, &[&hello], &info, &flags)?;
        cluster.node.containerd.load(NIX, &file)?;
        cluster.node.lists(&[&loaded])?;

        let closure = closure(host)?;
        for (image, more) in [
            (&image(&archive), closure + nar_size(archive.path())?),
            (&loaded, closure),
            (pause, 0),
        ] {
            let [own, listed] = theirs.image_sizes(image)?;
            ensure!(own == listed && own > 0, "{own} {listed}");
            poll("the size of an image", HEARING, || {
                Ok(when(ours.image_sizes(image)? == [own + more; 2]))
            })
            .with_context(|| format!("{image}: {own} + {more}, {:?}", ours.image_sizes(image)))?;
        }
        Ok(())
    });
}

/// What comes of a call: containerd 1.7 has an answer to ImageStatus without a name.
fn outcome<T>(answer: Result<T, Status>) -> Result<(), (Code, String)> {
    let told = |status: Status| (status.code(), status.message().to_owned());
    answer.map(|_| ()).map_err(told)
}

#[test]
fn what_fails_fails_as_it_does_without_counting() {
    test(|host| {
        let cluster = Cluster::start_with(host, counting, |config| config)?;
        // Which containerd has since 2.4: kubelet falls back to ListImages.
        for method in ["StreamImages", "ImageStatus"] {
            let expected = outcome(cluster.node.cri.call(method));
            let said = outcome(cluster.images.call(method));
            ensure!(said == expected, "{method}: {said:?} {expected:?}");
        }
        cluster.node.containerd.stop();
        for method in ["ListImages", "ImageFsInfo"] {
            let said = cluster.images.call(method).err().context("an answer")?;
            ensure!(said.code() == Code::Unavailable, "{said:?}");
        }
        Ok(())
    });
}
