//! Measures what depends on the size of a closure, against ordinary images on containerd's own overlayfs.
//!
//! `make bench` runs it in the sandbox. `NIX_SNAPSHOTTER_MANY` names a closure-info of
//! a thousand paths. All figures of a table are from one run, medians of several
//! measurements that take turns, so that ratios mean something on any machine.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{
    containerd::{Containerd, NIX, OVERLAYFS},
    host::{Host, unique},
    image::{Image, Layer},
    node::{Node, build, build_command, busybox_image, reference},
    process::succeed,
};

/// How often each figure is measured.
const ROUNDS: usize = 9;

/// Names the closure-info of many paths.
const MANY: &str = "NIX_SNAPSHOTTER_MANY";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let host = Host::detect()?;
    let many = env::var(MANY).with_context(|| format!("{MANY} is not set; run `make bench`"))?;
    let many = fs::canonicalize(many)?;
    let paths = fs::read_to_string(many.join("store-paths"))?;
    let paths: Vec<_> = paths.lines().collect();
    ensure!(
        paths.len() >= 1000,
        "{} lists {} paths only",
        many.display(),
        paths.len()
    );

    let node = Node::start(&host)?;
    let idle = node.daemon.resident_kib()?;
    let mut table = Table::default();
    unpacking(&host, &node, &many, &mut table)?;
    loading(&host, &node, &many, &mut table)?;
    building(&host, &many, &mut table)?;
    running(&host, &node, &paths, &mut table)?;

    println!("{} paths, medians of {ROUNDS}", paths.len());
    table.print();
    println!(
        "\nresident memory of the daemon: {}",
        mebibytes(node.daemon.resident_kib()?)
    );
    println!("  before the first image: {}", mebibytes(idle));
    Ok(())
}

/// An image, and the snapshotter that it is for.
struct Subject {
    name: &'static str,
    snapshotter: &'static str,
    archive: PathBuf,
    image: String,
}

/// The ordinary image of one layer, and the closure in both formats.
fn subjects(host: &Host, many: &Path) -> Result<[Subject; 3]> {
    let many = many.to_str().context("a path in UTF-8")?;
    let subject = |name, snapshotter, archive: &dyn Fn(&str) -> Result<PathBuf>| {
        let image = reference("bench");
        Ok::<_, anyhow::Error>(Subject {
            name,
            snapshotter,
            archive: archive(&image)?,
            image,
        })
    };
    Ok([
        subject("ordinary, overlayfs", OVERLAYFS, &|image| {
            busybox_image(host, image, [])
        })?,
        subject("closure format", NIX, &|image| {
            build(host, image, &["/x"], many, &[])
        })?,
        subject("per-path format", NIX, &|image| {
            build(host, image, &["/x"], many, &["--annotations", "per-path"])
        })?,
    ])
}

/// Import and unpack by containerd's transfer service.
fn unpacking(host: &Host, node: &Node, many: &Path, table: &mut Table) -> Result<()> {
    measure_images(
        "import + unpack",
        &subjects(host, many)?,
        node,
        table,
        &|subject| {
            node.containerd
                .import(subject.snapshotter, &subject.archive)
        },
    )
}

/// The same by `nix2container load`, as a process.
fn loading(host: &Host, node: &Node, many: &Path, table: &mut Table) -> Result<()> {
    measure_images(
        "nix2container load",
        &subjects(host, many)?,
        node,
        table,
        &|subject| node.containerd.load(subject.snapshotter, &subject.archive),
    )
}

fn measure_images(
    what: &str,
    subjects: &[Subject],
    node: &Node,
    table: &mut Table,
    bring: &dyn Fn(&Subject) -> Result<()>,
) -> Result<()> {
    let mut times = vec![Vec::new(); subjects.len()];
    // The first round warms the caches.
    for round in 0..=ROUNDS {
        for (subject, times) in subjects.iter().zip(&mut times) {
            let time = timed(|| bring(subject))?;
            node.containerd.remove_image(&subject.image)?;
            node.containerd.collect_garbage()?;
            if round > 0 {
                times.push(time);
            }
        }
    }
    for (subject, times) in subjects.iter().zip(times) {
        table.add(what, subject.name, times);
    }
    Ok(())
}

/// `nix2container build`, as a process.
fn building(host: &Host, many: &Path, table: &mut Table) -> Result<()> {
    let archive = host.dir().join(unique("archive"));
    let (mut closure, mut per_path) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (times, flags) in [
            (&mut closure, &[][..]),
            (&mut per_path, &["--annotations", "per-path"]),
        ] {
            let mut build = build_command(host, &reference("bench"), &["/x"], many, &archive)?;
            build.args(flags);
            times.push(timed(|| succeed(&mut build).map(drop))?);
        }
    }
    table.add("nix2container build", "closure format", closure);
    table.add("nix2container build", "per-path format", per_path);
    Ok(())
}

/// `ctr run --rm --null-io` of a static program.
fn running(host: &Host, node: &Node, paths: &[&str], table: &mut Table) -> Result<()> {
    let busybox = host.fixture("busybox")?;
    let program = format!("{busybox}/bin/busybox");
    let nix_image = |count: usize| -> Result<String> {
        let image = reference("bench");
        let mut closure: Vec<_> = paths.iter().take(count - 1).copied().collect();
        closure.push(&busybox);
        let archive = host.dir().join(unique("archive"));
        let layer = Layer::per_path(&closure)?;
        Image::new(&image)
            .entrypoint(&[&program, "true"])
            .layer(layer)
            .write(&archive)?;
        node.containerd.import(NIX, &archive)?;
        Ok(image)
    };
    let ordinary = reference("bench");
    node.containerd
        .import(OVERLAYFS, &busybox_image(host, &ordinary, [])?)?;
    let subjects = [
        ("ordinary, overlayfs", OVERLAYFS, ordinary),
        ("5 paths", NIX, nix_image(5)?),
        ("1000 paths", NIX, nix_image(1000)?),
    ];
    let mut times = vec![Vec::new(); subjects.len()];
    for round in 0..=ROUNDS {
        for ((_, snapshotter, image), times) in subjects.iter().zip(&mut times) {
            let time = timed(|| container(&node.containerd, snapshotter, image))?;
            if round > 0 {
                times.push(time);
            }
        }
    }
    for ((name, _, _), times) in subjects.iter().zip(times) {
        table.add("ctr run --rm --null-io", name, times);
    }
    Ok(())
}

fn container(containerd: &Containerd, snapshotter: &str, image: &str) -> Result<()> {
    let id = unique("bench");
    let run = [
        "run",
        "--rm",
        "--null-io",
        "--snapshotter",
        snapshotter,
        image,
        &id,
    ];
    succeed(&mut containerd.ctr(&run))?;
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn mebibytes(kib: u64) -> String {
    format!("{}.{} MiB", kib / 1024, kib % 1024 * 10 / 1024)
}

/// Medians by what was done and to what; the first row of each task is what the others are compared with.
#[derive(Default)]
struct Table(Vec<(String, String, Duration, Duration)>);

impl Table {
    fn add(&mut self, what: &str, subject: &str, mut times: Vec<Duration>) {
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        let least = times.first().copied().unwrap_or_default();
        self.0
            .push((what.to_owned(), subject.to_owned(), median, least));
    }

    fn print(&self) {
        println!(
            "{:<24}{:<22}{:>10}{:>10}{:>8}",
            "", "", "median", "least", "ratio"
        );
        for (what, subject, median, least) in &self.0 {
            let base = self
                .0
                .iter()
                .find(|row| row.0 == *what)
                .map_or(*median, |row| row.2);
            let ratio = median.as_secs_f64() / base.as_secs_f64();
            let ms = |time: &Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
            println!(
                "{what:<24}{subject:<22}{:>10}{:>10}{ratio:>7.2}×",
                ms(median),
                ms(least)
            );
        }
    }
}
