//! Pulls on a machine without the store paths: a binary cache has them, and does not always serve well.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use e2e::{
    cache::{Cache, Fault, Key, Part},
    closure::{Closure, FORMATS, Format},
    containerd::{Containerd, NIX},
    daemon::{Config, Daemon, Kept},
    host::{Host, test},
    node::{Node, busybox_image, reference},
    process::{SETTLE, children, poll, run, when},
    snapshots::{Snapshots, refused, says},
    store::{Store, collect_garbage, evict, registered_roots},
};
use rustix::net::{AddressFamily, SocketType};
use tonic::Code;

/// Bytes of data in most closures: several packets, and no long download.
const BYTES: usize = 200_000;

/// More than any pull here takes that is not stuck for ever.
const BOUND: Duration = Duration::from_secs(60);

/// A closure that is in a cache and not in the store.
struct Remote {
    cache: Cache,
    closure: Closure,
}

impl Remote {
    fn new(host: &Host, format: Format) -> Result<Self> {
        let cache = Cache::start(host)?;
        let closure = away(host, format, &cache, Some(cache.key()))?;
        Ok(Self { cache, closure })
    }

    /// Signed by a key that nobody trusts, or by none.
    fn untrusted(host: &Host, format: Format, key: Option<&Key>) -> Result<Self> {
        let cache = Cache::start(host)?;
        let closure = away(host, format, &cache, key)?;
        Ok(Self { cache, closure })
    }

    fn image(&self, host: &Host) -> Result<(String, PathBuf)> {
        let image = reference("remote");
        let archive = busybox_image(host, &image, [self.closure.layer()?])?;
        Ok((image, archive))
    }
}

/// Builds a closure and moves it into the cache, signed by this key or by none.
fn away(host: &Host, format: Format, cache: &Cache, key: Option<&Key>) -> Result<Closure> {
    let closure = Closure::build(&Store::new(host)?, format, BYTES)?;
    cache.add(closure.objects(), key)?;
    evict(closure.objects())?;
    Ok(closure)
}

/// A daemon alone, whose Nix gets a closure from a cache.
struct Puller {
    remote: Remote,
    daemon: Daemon,
    snapshots: Snapshots,
    before: Kept,
}

impl Puller {
    /// With these lines of `nix.conf`, and these of the daemon's configuration.
    fn start(host: &Host, nix: &[&str], lines: &[&str]) -> Result<Self> {
        let remote = Remote::new(host, Format::PerPath)?;
        let config = Config::new(host, "daemon");
        let config = lines.iter().fold(config, Config::line);
        let daemon = Daemon::start(&remote.cache.substituter_of(config, nix))?;
        Ok(Self {
            remote,
            snapshots: daemon.snapshots()?,
            before: daemon.config().kept()?,
            daemon,
        })
    }

    fn pull(&self) -> Result<(), tonic::Status> {
        self.remote.closure.prepare(&self.snapshots, "container")?;
        Ok(())
    }

    /// Pulls, which must fail with these words, and leave nothing: no row, no directory,
    /// no GC root, no Nix.
    fn fails(&self, code: Code, words: &[&str]) -> Result<()> {
        let start = Instant::now();
        refused(self.pull(), code, words)?;
        ensure!(start.elapsed() < BOUND, "it took {:?}", start.elapsed());
        self.leaves_nothing()
    }

    fn leaves_nothing(&self) -> Result<()> {
        self.nix_has_ended()?;
        ensure!(self.snapshots.list(&[])?.is_empty(), "a row is left");
        self.daemon.keeps_only(&self.before)?;
        collect_garbage()?;
        let roots = registered_roots(self.daemon.config().root())?;
        ensure!(roots.is_empty(), "Nix has a note of {roots:?}");
        Ok(())
    }

    fn nix_has_ended(&self) -> Result<()> {
        poll("the end of Nix", SETTLE, || {
            Ok(when(children(self.daemon.pid())?.is_empty()))
        })?;
        poll("the end of its requests", SETTLE, || {
            Ok(when(self.remote.cache.in_flight() == 0))
        })
    }

    /// Pulls, which must succeed, and frees the closure again.
    fn succeeds(&self) -> Result<()> {
        self.pull()?;
        self.remote.closure.is_here()?;
        self.nix_has_ended()?;
        self.snapshots.remove("container")?;
        self.snapshots.cleanup()?;
        self.leaves_nothing()?;
        e2e::store::are_gone(self.remote.closure.objects())
    }
}

fn server_error(times: usize) -> Option<Fault> {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Some(Fault::Status { times, status })
}

#[test]
fn a_pull_substitutes_the_closure_and_the_container_runs() {
    test(|host| {
        for format in FORMATS {
            let remote = Remote::new(host, format)?;
            let config = Config::new(host, "daemon");
            let node = Node::start_with(host, &remote.cache.substituter_of(config, &[]))?;
            for pull in [Containerd::import, Containerd::load] {
                let (image, archive) = remote.image(host)?;
                pull(&node.containerd, NIX, &archive)?;
                ensure!(remote.cache.take_requests(Part::Nars) == remote.closure.objects().len());
                remote.closure.is_here()?;
                let check = remote.closure.check();
                let check = check.each_ref().map(|word| &**word);
                node.containerd.run(NIX, &image, &check)?.success()?;

                node.containerd.remove_image(&image)?;
                node.keeps_nothing()?;
                collect_garbage()?;
                e2e::store::are_gone(remote.closure.objects())?;
            }
        }
        Ok(())
    });
}

#[test]
fn unsigned_and_wrongly_signed_paths_are_refused_in_the_words_of_nix() {
    test(|host| {
        let other = Key::new(host)?;
        for (key, format) in [(None, Format::PerPath), (Some(&other), Format::ClosureInfo)] {
            let remote = Remote::untrusted(host, format, key)?;
            let config = Config::new(host, "daemon");
            let node = Node::start_with(host, &remote.cache.substituter_of(config, &[]))?;
            let (_, archive) = remote.image(host)?;
            let archive_name = archive.to_str().context("a path in UTF-8")?;
            let import = [
                "images",
                "import",
                "--local=false",
                "--snapshotter",
                NIX,
                archive_name,
            ];
            let commands: [Command; 2] = [
                node.containerd.ctr(&import),
                node.containerd.load_command(NIX, &archive),
            ];
            for mut pull in commands {
                let said = run(&mut pull)?.failure()?;
                says(
                    &said,
                    &[
                        "/nix/store/",
                        "not signed by any of the keys in 'trusted-public-keys'",
                    ],
                )
                .with_context(|| format!("{pull:?}"))?;
                node.keeps_nothing()?;
            }
            collect_garbage()?;
            let roots = registered_roots(node.daemon.config().root())?;
            ensure!(roots.is_empty(), "Nix has a note of {roots:?}");
        }
        Ok(())
    });
}

#[test]
fn a_cache_that_fails_is_asked_again_until_it_recovers() {
    test(|host| {
        let puller = Puller::start(
            host,
            &["download-attempts = 3", "http-connections = 1"],
            &[],
        )?;
        let objects = puller.remote.closure.objects().len();
        let cache = &puller.remote.cache;
        puller.succeeds()?;
        let narinfos = cache.take_requests(Part::Narinfos);
        ensure!(cache.take_requests(Part::Nars) == objects);

        // Twice of three times.
        cache.fault(Part::Nars, server_error(2));
        puller.succeeds()?;
        ensure!(cache.take_requests(Part::Nars) == objects + 2);
        let _ = cache.take_requests(Part::Narinfos);
        cache.fault(Part::Narinfos, server_error(2));
        puller.succeeds()?;
        let asked = cache.take_requests(Part::Narinfos);
        ensure!(asked >= 2 && asked <= narinfos + 2, "{asked} requests");

        for part in [Part::Narinfos, Part::Nars] {
            cache.fault(part, server_error(usize::MAX));
            puller.fails(Code::FailedPrecondition, &["nix-store", "HTTP error 500"])?;
            cache.fault(part, None);
            puller.succeeds()?;
        }
        Ok(())
    });
}

#[test]
fn a_broken_connection_is_taken_up_again() {
    test(|host| {
        let puller = Puller::start(host, &["download-attempts = 3"], &[])?;
        let objects = puller.remote.closure.objects().len();
        let cache = &puller.remote.cache;
        let after = BYTES / 4;
        cache.fault(Part::Nars, Some(Fault::Cut { times: 2, after }));
        puller.succeeds()?;
        ensure!(cache.take_requests(Part::Nars) == objects + 2);

        let times = usize::MAX;
        cache.fault(Part::Nars, Some(Fault::Cut { times, after: 0 }));
        puller.fails(Code::FailedPrecondition, &["nix-store", &cache.url()])?;
        cache.fault(Part::Nars, None);
        puller.succeeds()
    });
}

#[test]
fn a_path_that_the_cache_has_not_is_not_asked_for_again() {
    test(|host| {
        let puller = Puller::start(host, &[], &[])?;
        let cache = &puller.remote.cache;
        let fault = Fault::Status {
            times: usize::MAX,
            status: StatusCode::NOT_FOUND,
        };
        cache.fault(Part::Narinfos, Some(fault));
        let path = puller.remote.closure.objects()[0].path();
        puller.fails(Code::FailedPrecondition, &["nix-store", path])?;
        cache.fault(Part::Narinfos, None);
        puller.succeeds()
    });
}

#[test]
fn a_slow_cache_is_waited_for() {
    test(|host| {
        let puller = Puller::start(host, &["stalled-download-timeout = 1"], &[])?;
        // The program of two megabytes, compressed to half of it, takes more than two seconds.
        let bytes_per_second = 500_000;
        puller
            .remote
            .cache
            .fault(Part::Nars, Some(Fault::Slow { bytes_per_second }));
        puller.succeeds()
    });
}

#[test]
fn a_cache_that_says_nothing_is_given_up_after_realise_timeout() {
    test(|host| {
        // The pulls that succeed have to, within the same time.
        let puller = Puller::start(host, &[], &["realise_timeout = 6"])?;
        for part in [Part::Narinfos, Part::Nars] {
            puller.remote.cache.fault(part, Some(Fault::Stalled));
            let words = ["realise_timeout", "6 s", "nix-store"];
            puller.fails(Code::DeadlineExceeded, &words)?;
            puller.remote.cache.fault(part, None);
            puller.succeeds()?;
        }
        Ok(())
    });
}

#[test]
fn nixs_own_limits_end_a_pull_with_nixs_own_words() {
    test(|host| {
        let nix = ["stalled-download-timeout = 1", "download-attempts = 1"];
        let puller = Puller::start(host, &nix, &[])?;
        puller.remote.cache.fault(Part::Nars, Some(Fault::Stalled));
        puller.fails(
            Code::FailedPrecondition,
            &["nix-store", "Timeout was reached"],
        )?;
        drop(puller);

        let (_listener, port) = black_hole()?;
        let substituter = format!("substituters = http://127.0.0.1:{port}");
        let nix = [
            &*substituter,
            "connect-timeout = 1",
            "download-attempts = 1",
        ];
        let puller = Puller::start(host, &nix, &[])?;
        puller.fails(
            Code::FailedPrecondition,
            &["nix-store", &port.to_string(), "Timeout was reached"],
        )
    });
}

/// A port that nobody answers on, not even by a refusal.
///
/// Once the one place in its queue is taken, the kernel drops further attempts to
/// connect (listen(2)).
fn black_hole() -> Result<(Vec<OwnedFd>, u16)> {
    let listener = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    let any = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0);
    rustix::net::bind(&listener, &any)?;
    rustix::net::listen(&listener, 0)?;
    let address = std::net::SocketAddr::try_from(rustix::net::getsockname(&listener)?)?;
    let waiting = std::net::TcpStream::connect(address)?;
    Ok((vec![listener, waiting.into()], address.port()))
}

#[test]
fn a_pull_that_nobody_waits_for_ends_its_download() {
    test(|host| {
        let puller = Puller::start(host, &[], &[])?;
        let cache = &puller.remote.cache;
        cache.fault(
            Part::Nars,
            Some(Fault::Slow {
                bytes_per_second: 100,
            }),
        );
        let pull = puller
            .remote
            .closure
            .begin_prepare(&puller.snapshots, "container");
        poll("a download", SETTLE, || {
            Ok(when(cache.take_requests(Part::Nars) > 0))
        })?;
        pull.abandon();
        puller.leaves_nothing()?;
        cache.fault(Part::Nars, None);
        puller.succeeds()
    });
}
