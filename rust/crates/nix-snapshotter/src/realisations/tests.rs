use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nix_store::{RealiserOptions, StoreDir};
use proptest::prelude::*;
use snapshots::Options;
use tokio::task::JoinHandle;

use super::*;
use crate::nix_snapshotter::GC_ROOTS;

/// How long anything may take that is certain to happen.
const BOUND: Duration = Duration::from_secs(60);

/// What every builder here does at its end: the object, and its root.
const PROVIDE: &str = r#"[ -e "$2" ] || echo content > "$2"; ln -s "$2" "$1""#;

/// Realisations by a shell script in place of Nix, for a store of their own.
struct Bench {
    dir: tempfile::TempDir,
    store_dir: StoreDir,
    realisations: Arc<Realisations>,
}

type Call = JoinHandle<Result<RealisedLayer, Error>>;

impl Bench {
    /// `$dir` is a directory that the script may use, `$name` the name of the store object.
    fn new(max_fetching: u16, timeout: Option<Duration>, script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let builder = dir.path().join("builder");
        let prelude = format!("dir={}; name=${{2##*-}}", dir.path().display());
        let text = dir.path().join("builder.sh");
        fs::write(&text, format!("#!/bin/sh\n{prelude}\n{script}\n")).unwrap();
        // Made by another process: what this one has open for writing, a child of another test may
        // inherit, and then it cannot be run (ETXTBSY).
        let mut install = Command::new("install");
        let installed = install.args(["-m", "755"]).args([&text, &builder]).status();
        assert!(installed.unwrap().success());
        let store = dir.path().join("store");
        fs::create_dir(&store).unwrap();
        let store_dir = StoreDir::new(store.to_str().unwrap()).unwrap();
        let options = Options {
            attachments: GC_ROOTS,
            ..Options::default()
        };
        let snapshots = Snapshotter::open(&dir.path().join("root"), &options).unwrap();
        let realiser = Realiser::new(RealiserOptions {
            store_dir: store_dir.clone(),
            external_builder: Some(builder),
            timeout,
        });
        let realisations = Realisations::new(Arc::new(snapshots), realiser, max_fetching);
        Self {
            dir,
            store_dir,
            realisations,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn path(&self, name: &str) -> StorePath {
        let text = format!("{}/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-{name}", self.store_dir);
        self.store_dir.parse(&text).unwrap()
    }

    fn layer(&self, name: &str) -> Arc<LayerClosure> {
        Arc::new(LayerClosure {
            closure_info: None,
            paths: [self.path(name)].into_iter().collect(),
        })
    }

    /// A call for the layer of one path with this name.
    fn call(&self, name: &str) -> Call {
        let (realisations, layer) = (Arc::clone(&self.realisations), self.layer(name));
        tokio::spawn(async move { realisations.realise(&layer).await })
    }

    /// Waits until the realisation of this layer runs, and so many calls share it.
    async fn runs_for(&self, calls: usize, name: &str) {
        let layer = self.layer(name);
        let sharing = || {
            let shared = self.realisations.shared();
            shared.get(&*layer).map_or(0, Weak::strong_count)
        };
        until(|| self.realisations.stats().running == 1 && sharing() == calls).await;
    }

    fn roots(&self) -> BTreeSet<PathBuf> {
        match fs::read_dir(self.file("root").join(GC_ROOTS)) {
            Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
            Err(_) => BTreeSet::new(),
        }
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.file(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until nothing runs, waits or is left, except for what is held by a call.
    async fn idle(&self) {
        until(|| {
            let stats = self.realisations.stats();
            stats.running + stats.waiting == 0 && self.realisations.tasks.is_empty()
        })
        .await;
        assert!(self.realisations.shared().is_empty());
    }
}

async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    time::timeout(BOUND, waiting).await.expect("in time");
}

async fn answer(call: Call) -> Result<RealisedLayer, Error> {
    time::timeout(BOUND, call).await.expect("in time").unwrap()
}

/// Goes away in the midst of a call.
async fn hang_up(call: Call) {
    call.abort();
    assert!(call.await.is_err_and(|error| error.is_cancelled()));
}

fn is_running(pid_file: &Path) -> bool {
    let pid = fs::read_to_string(pid_file).unwrap();
    fs::read(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|line| !line.is_empty())
}

/// Waits in the script until the test makes a file.
fn wait_for(file: &str) -> String {
    format!(r#"until [ -e "$dir/{file}" ]; do sleep 0.01; done"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_closures_are_fetched_once_and_each_call_has_roots_of_its_own() {
    let script = format!(
        r#"[ -e "$2" ] || {{ echo fetch >> "$dir/log"; {}; }}; {PROVIDE}"#,
        wait_for("go")
    );
    let bench = Bench::new(8, None, &script);
    let calls: Vec<_> = (0..5).map(|_| bench.call("a")).collect();
    bench.runs_for(5, "a").await;
    fs::write(bench.file("go"), "").unwrap();

    let mut layers = Vec::new();
    for call in calls {
        layers.push(answer(call).await.unwrap());
    }
    assert_eq!(bench.lines("log"), ["fetch"]);
    let ids: BTreeSet<_> = layers.iter().map(|layer| layer.reservation.id()).collect();
    assert_eq!(ids.len(), 5);
    for layer in &layers {
        let link = layer
            .reservation
            .attachment_dir()
            .join(bench.path("a").base_name());
        assert_eq!(fs::read_link(link).unwrap(), bench.path("a").as_path());
        assert_eq!(layer.closure.paths(), [bench.path("a")]);
    }
    let stats = bench.realisations.stats();
    assert_eq!((stats.succeeded, stats.failed, stats.cancelled), (5, 0, 0));
    // A call that begins within the same tick of the file system's clock takes the path for its own.
    assert!(
        (1..=5).contains(&stats.paths) && stats.bytes == 0,
        "{stats:?}"
    );
    assert!(stats.time > Duration::ZERO);
    drop(layers);
    bench.idle().await;
    assert!(bench.roots().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_realised_ahead_is_held_for_the_next_call() {
    let bench = Bench::new(8, None, &format!(r#"echo run >> "$dir/log"; {PROVIDE}"#));
    let ahead = async || {
        let layer = bench.layer("a");
        time::timeout(BOUND, bench.realisations.realise_ahead(&layer))
            .await
            .expect("in time")
            .unwrap()
    };
    let (first, second) = (ahead().await, ahead().await);
    assert_eq!(bench.lines("log"), ["run"]);
    assert!(!bench.realisations.is_under_way(&bench.layer("a")));
    assert!(bench.realisations.under_way().is_empty());
    drop(first);
    let roots = bench.roots();
    assert_eq!(roots.len(), 1);

    let taken = answer(bench.call("a")).await.unwrap();
    assert_eq!(bench.lines("log"), ["run"]);
    assert_eq!(roots, [taken.reservation.attachment_dir()].into());
    let own = answer(bench.call("a")).await.unwrap();
    assert_eq!(bench.lines("log"), ["run", "run"]);
    drop((second, own));
    assert_eq!(bench.roots(), roots);

    // What nobody takes goes with who has asked for it.
    drop(taken);
    let third = ahead().await;
    assert_eq!(bench.roots().len(), 1);
    drop(third);
    bench.idle().await;
    assert!(bench.roots().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_call_that_goes_away_ends_the_realisation_and_leaves_nothing() {
    let script = r#"ln -s "$2" "$1"; sleep 1000 & echo $! > "$dir/pid"; wait"#;
    let bench = Bench::new(8, None, script);
    let (first, second) = (bench.call("a"), bench.call("a"));
    bench.runs_for(2, "a").await;
    let pid = bench.file("pid");
    until(|| fs::read_to_string(&pid).is_ok_and(|pid| !pid.is_empty())).await;
    assert_eq!(bench.roots().len(), 1);

    hang_up(first).await;
    time::sleep(Duration::from_millis(100)).await;
    assert!(is_running(&pid) && bench.roots().len() == 1);
    hang_up(second).await;
    bench.idle().await;
    assert!(!is_running(&pid));
    assert!(bench.roots().is_empty());
    assert_eq!(bench.realisations.stats().cancelled, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_for_all_who_wait_and_for_nobody_later() {
    let script = format!(
        r#"{}; [ -e "$dir/healed" ] || {{ echo attempt >> "$dir/log"; echo out of luck >&2; exit 1; }}; {PROVIDE}"#,
        wait_for("go")
    );
    let bench = Bench::new(8, None, &script);
    let calls: Vec<_> = (0..3).map(|_| bench.call("a")).collect();
    bench.runs_for(3, "a").await;
    fs::write(bench.file("go"), "").unwrap();
    for call in calls {
        let error = answer(call).await.err().expect("a failure").to_string();
        assert!(error.contains("out of luck"), "{error}");
    }
    assert_eq!(bench.lines("log"), ["attempt"]);
    assert!(bench.roots().is_empty());
    assert_eq!(bench.realisations.stats().failed, 1);

    fs::write(bench.file("healed"), "").unwrap();
    assert!(answer(bench.call("a")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_has_something_to_fetch_waits_in_the_order_of_asking() {
    let script = format!(
        r#"[ -e "$2" ] || {{ echo "$name" >> "$dir/log"; {}; }}; {PROVIDE}"#,
        wait_for("$name")
    );
    let bench = Bench::new(1, None, &script);
    fs::write(bench.path("present").as_path(), "").unwrap();
    let stats = || bench.realisations.stats();
    let running = bench.call("a");
    until(|| stats().running == 1).await;
    let mut waiting = Vec::new();
    for (at, name) in ["b", "c", "d"].into_iter().enumerate() {
        waiting.push(bench.call(name));
        until(|| stats().waiting == at as u64 + 1).await;
    }
    let present = answer(bench.call("present")).await.unwrap();
    assert_eq!((stats().running, stats().waiting), (1, 3));

    // One that hangs up while it waits is passed over.
    hang_up(waiting.remove(1)).await;
    until(|| stats().waiting == 2 && stats().cancelled == 1).await;
    for name in ["a", "b", "d"] {
        fs::write(bench.file(name), "").unwrap();
    }
    let mut layers = vec![present, answer(running).await.unwrap()];
    for call in waiting {
        layers.push(answer(call).await.unwrap());
    }
    assert_eq!(bench.lines("log"), ["a", "b", "d"]);
    assert_eq!(bench.roots().len(), 4);
    drop(layers);
    bench.idle().await;
    assert!(bench.roots().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_turn_is_no_part_of_the_time_limit() {
    let limit = Duration::from_secs(6);
    let bench = Bench::new(1, Some(limit), &format!("{}; {PROVIDE}", wait_for("$name")));
    let first = bench.call("a");
    until(|| bench.realisations.stats().running == 1).await;
    let start = Instant::now();
    let second = bench.call("b");
    let third = bench.call("never");
    for (name, call) in [("a", first), ("b", second)] {
        // Within its own limit, and not within one that is shared.
        time::sleep(limit * 11 / 20).await;
        fs::write(bench.file(name), "").unwrap();
        assert!(answer(call).await.is_ok(), "{name}");
    }
    assert!(start.elapsed() > limit);
    let error = answer(third).await.err().expect("a failure").to_string();
    for expected in ["6 s", "realise_timeout"] {
        assert!(error.contains(expected), "{expected} is not in {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_ends_everything_and_says_so() {
    // Without a child, which when dead would be in the group until init has waited for it.
    let bench = Bench::new(1, None, r#"echo $$ > "$dir/pid"; exec sleep 1000"#);
    let pid = bench.file("pid");
    let running = bench.call("a");
    until(|| fs::read_to_string(&pid).is_ok_and(|pid| !pid.is_empty())).await;
    let waiting = bench.call("b");
    until(|| bench.realisations.stats().waiting == 1).await;
    bench.realisations.shut_down().await;
    assert!(!is_running(&pid));
    assert!(bench.roots().is_empty());
    for call in [running, waiting, bench.call("c")] {
        let error = answer(call).await.err().expect("a failure");
        assert_eq!(tonic::Status::from(error).code(), tonic::Code::Unavailable);
    }
}

/// A call, when it comes, and when it goes away if it does not wait for its answer.
#[derive(Clone, Debug)]
struct Visit {
    name: usize,
    comes: u64,
    stays: Option<u64>,
}

fn visits() -> impl Strategy<Value = Vec<Visit>> {
    let visit = (0..4_usize, 0..40_u64, prop::option::of(0..60_u64));
    prop::collection::vec(
        visit.prop_map(|(name, comes, stays)| Visit { name, comes, stays }),
        1..24,
    )
}

/// Counts how many of it live, and takes a while in which it can be stopped at any point; one that is
/// stopped leaves its mark.
const BUSY: &str = r#"
if ! [ -e "$2" ]; then
    : > "$dir/running-$$"
    number=0
    for file in "$dir"/running-*; do
        kill -0 "${file##*-}" 2> /dev/null && number=$((number + 1))
    done
    echo $number >> "$dir/at-once"
    sleep 0.015
    rm "$dir/running-$$"
    [ "$name" != 3 ] || exit 1
fi
"#;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    /// However calls come and go, each that stays has an answer of its own, and nothing is left.
    #[test]
    fn calls_come_and_go_as_they_like(visits in visits()) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let bench = Bench::new(2, None, &format!("{BUSY}{PROVIDE}"));
            let calls: Vec<_> = visits
                .iter()
                .map(|visit| {
                    let (visit, layer) = (visit.clone(), bench.layer(&visit.name.to_string()));
                    let realisations = Arc::clone(&bench.realisations);
                    tokio::spawn(async move {
                        time::sleep(Duration::from_millis(visit.comes)).await;
                        let call = realisations.realise(&layer);
                        match visit.stays {
                            Some(stays) => time::timeout(Duration::from_millis(stays), call).await.ok(),
                            None => Some(call.await),
                        }
                    })
                })
                .collect();
            let mut layers = Vec::new();
            for (call, visit) in calls.into_iter().zip(&visits) {
                let answer = time::timeout(BOUND, call).await.expect("in time").unwrap();
                match answer {
                    Some(Ok(layer)) => {
                        assert_ne!(visit.name, 3);
                        assert_eq!(layer.closure.paths(), [bench.path(&visit.name.to_string())]);
                        layers.push(layer);
                    }
                    Some(Err(error)) => assert_eq!(visit.name, 3, "{error}"),
                    None => assert!(visit.stays.is_some()),
                }
            }
            bench.idle().await;
            // Exactly what the calls hold is there.
            let held: BTreeSet<_> = layers
                .iter()
                .map(|layer| layer.reservation.attachment_dir())
                .collect();
            assert_eq!(held.len(), layers.len());
            assert_eq!(bench.roots(), held);
            drop(layers);
            assert!(bench.roots().is_empty());
            for number in bench.lines("at-once") {
                assert!(number.parse::<u32>().unwrap() <= 2, "{number} at once");
            }
            assert_eq!(bench.realisations.turns.available_permits(), 2);
        });
    }
}
