//! A client that makes random changes to a daemon that is killed under it, and notes which of them
//! were acknowledged.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use tonic::{Code, Status};

use crate::{
    invariants::layer,
    process::{poll, when},
    snapshots::{Info, Kind, Snapshots, upper},
};

/// How long a service may stay away after the daemon was killed; containerd waits up to three
/// seconds between its attempts to connect.
pub const AWAY_BOUND: Duration = Duration::from_secs(60);

/// A label that clients change.
const NOTE: &str = "containerd.io/snapshot/note";

/// Keeps a snapshot from containerd's collector.
const GC_ROOT: &str = "containerd.io/gc.root";

/// How many snapshots a client has before it rather removes than makes them.
const MANY: usize = 12;

/// When the daemon was killed, and whether it is back: a call that fails otherwise is a defect.
#[derive(Debug, Default)]
pub struct Outages(AtomicU32);

impl Outages {
    /// The daemon is going to be killed.
    pub fn begin(&self) {
        self.0.fetch_or(1, Ordering::SeqCst);
    }

    /// It is back, and those who call through containerd reach it again.
    pub fn end(&self) {
        self.0.fetch_add(self.now() & 1, Ordering::SeqCst);
    }

    /// A moment for [`Outages::excuse`].
    #[must_use]
    pub fn now(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether a call that began at this moment and has failed by now was cut off.
    #[must_use]
    pub fn excuse(&self, since: u32) -> bool {
        !since.is_multiple_of(2) || self.now() != since
    }
}

/// The labels of a layer.
pub type LayerLabels = Vec<(String, String)>;

/// Which way a client's calls go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// On the daemon's own socket.
    Direct,
    /// Through containerd, which keeps a record of its own and changes it only when the daemon
    /// has answered.
    Containerd,
}

/// What a client knows of one of its snapshots.
#[derive(Clone, Debug)]
struct Known {
    kind: Kind,
    parent: String,
    labels: BTreeMap<String, String>,
    /// The directory of the layer, and what was written there. Learnt with the answer to Prepare.
    content: Option<(PathBuf, String)>,
}

/// A call that changes something.
#[derive(Debug)]
enum Change {
    Create { key: String, known: Known },
    Commit { key: String, name: String },
    Remove { key: String },
    Update { key: String, note: String },
}

/// The client.
#[derive(Debug)]
pub struct Worker<'a> {
    name: String,
    way: Way,
    snapshots: Snapshots,
    outages: &'a Outages,
    layers: &'a [LayerLabels],
    random: Rng,
    known: BTreeMap<String, Known>,
    next: u32,
}

impl<'a> Worker<'a> {
    /// A client whose snapshots all have names that begin with `name/`.
    #[must_use]
    pub fn new(
        name: &str,
        way: Way,
        snapshots: Snapshots,
        outages: &'a Outages,
        layers: &'a [LayerLabels],
        random: Rng,
    ) -> Self {
        Self {
            name: name.to_owned(),
            way,
            snapshots,
            outages,
            layers,
            random,
            known: BTreeMap::new(),
            next: 0,
        }
    }

    /// Makes one call, or several reads. When the daemon is killed meanwhile, waits until it is
    /// back, finds out what became of the call, and checks that nothing else is different from
    /// what was acknowledged.
    ///
    /// # Errors
    /// A call fails that no kill has cut off, or something acknowledged is lost.
    pub fn step(&mut self) -> Result<()> {
        let since = self.outages.now();
        let Some(change) = self.choose() else {
            return match self.read() {
                Err(status) if !self.outages.excuse(since) => Err(status.into()),
                _ => Ok(()),
            };
        };
        match self.call(&change) {
            Ok(layer) => self.apply(change, layer),
            Err(status) if self.outages.excuse(since) && is_cut_off(&status) => {
                self.retry(|worker| worker.settle(&change))?
                    .into_iter()
                    .try_for_each(|(change, layer)| self.apply(change, layer))?;
                self.verify()
            }
            Err(status) => Err(status).with_context(|| format!("{change:?}")),
        }
    }

    /// Checks that exactly what was acknowledged is there.
    ///
    /// # Errors
    /// Names the difference.
    pub fn verify(&mut self) -> Result<()> {
        let filter = format!("name~=\"^{}/\"", self.name);
        let found = self.retry(|worker| Ok(worker.snapshots.list(&[&filter])?))?;
        let found: BTreeMap<_, _> = found.iter().map(|info| (&info.name, info)).collect();
        ensure!(
            found.keys().copied().eq(self.known.keys()),
            "there are {:?}, but acknowledged were {:?}",
            found.keys(),
            self.known.keys()
        );
        for (name, known) in &self.known {
            known
                .check(found[name])
                .with_context(|| format!("snapshot {name}"))?;
        }
        Ok(())
    }

    /// Removes all its snapshots.
    ///
    /// # Errors
    /// What the service says.
    pub fn clear(&mut self) -> Result<()> {
        while let Some(key) = self.leaves().first().cloned() {
            self.snapshots.remove(&key)?;
            self.known.remove(&key);
        }
        Ok(())
    }

    fn choose(&mut self) -> Option<Change> {
        let active = self.of_kind(Kind::Active);
        let leaves = self.leaves();
        let make = if self.known.len() < MANY { 4 } else { 1 };
        match self.random.u32(0..12) {
            n if n < make => Some(self.new_snapshot()),
            4..=6 if !active.is_empty() => Some(Change::Commit {
                key: self.one_of(&active),
                name: self.new_name("committed"),
            }),
            7..=8 if !leaves.is_empty() => Some(Change::Remove {
                key: self.one_of(&leaves),
            }),
            9 if !self.known.is_empty() => Some(Change::Update {
                key: self.one_of(&self.known.keys().cloned().collect::<Vec<_>>()),
                note: self.new_name("note"),
            }),
            _ => None,
        }
    }

    fn new_snapshot(&mut self) -> Change {
        let mut parents = self.of_kind(Kind::Committed);
        parents.push(String::new());
        let (kind, labels) = match self.random.u32(0..4) {
            0 => (Kind::View, Vec::new()),
            _ => {
                let layer = self.random.usize(0..self.layers.len());
                (Kind::Active, self.layers[layer].clone())
            }
        };
        let mut labels: BTreeMap<_, _> = labels.into_iter().collect();
        if self.way == Way::Containerd {
            labels.insert(GC_ROOT.to_owned(), "true".to_owned());
        }
        let parent = self.one_of(&parents);
        Change::Create {
            key: self.new_name("made"),
            known: Known {
                kind,
                parent,
                labels,
                content: None,
            },
        }
    }

    /// Gives the directory of the layer that a Prepare has made.
    fn call(&self, change: &Change) -> Result<Option<PathBuf>, Status> {
        let snapshots = &self.snapshots;
        match change {
            Change::Create { key, known } => {
                let labels = pairs(&known.labels);
                let parent = &known.parent;
                if known.kind == Kind::View {
                    snapshots.view(key, parent, &labels)?;
                    return Ok(None);
                }
                let mounts = snapshots.prepare(key, parent, &labels)?;
                let layer = upper(&mounts).map_err(|error| Status::unknown(error.to_string()))?;
                return Ok(Some(layer));
            }
            Change::Commit { key, name } => {
                snapshots.commit(name, key, &pairs(&self.known[key].labels))?;
            }
            Change::Remove { key } => snapshots.remove(key)?,
            Change::Update { key, note } => {
                let info = Info {
                    name: key.clone(),
                    labels: [(NOTE.to_owned(), note.clone())].into(),
                    ..Info::default()
                };
                let path = format!("labels.{NOTE}");
                snapshots.update(info, Some(&[&path]))?;
            }
        }
        Ok(None)
    }

    fn read(&mut self) -> Result<(), Status> {
        self.snapshots.list(&["kind==active", "parent!=\"\""])?;
        let keys: Vec<_> = self.known.keys().cloned().collect();
        if !keys.is_empty() {
            let key = self.one_of(&keys);
            self.snapshots.stat(&key)?;
            self.snapshots.usage(&key)?;
            if self.known[&key].kind != Kind::Committed {
                self.snapshots.mounts(&key)?;
            }
        }
        if self.way == Way::Direct {
            self.snapshots.cleanup()?;
        }
        Ok(())
    }

    /// Notes a change that was acknowledged, or found to be made.
    fn apply(&mut self, change: Change, layer: Option<PathBuf>) -> Result<()> {
        match change {
            Change::Create { key, mut known } => {
                if let Some(layer) = layer {
                    let text = format!("written for {key}");
                    fs::write(layer.join("content"), &text)?;
                    known.content = Some((layer, text));
                }
                self.known.insert(key, known);
            }
            Change::Commit { key, name } => {
                let known = self.known.remove(&key).context("a commit of nothing")?;
                let kind = Kind::Committed;
                self.known.insert(name, Known { kind, ..known });
            }
            Change::Remove { key } => {
                self.known.remove(&key);
            }
            Change::Update { key, note } => {
                let known = self.known.get_mut(&key).context("an update of nothing")?;
                known.labels.insert(NOTE.to_owned(), note);
            }
        }
        Ok(())
    }

    /// Finds out whether a change was made that nobody has acknowledged.
    fn settle(&mut self, change: &Change) -> Result<Option<(Change, Option<PathBuf>)>> {
        let stat = |key: &str| match self.snapshots.stat(key) {
            Err(status) if status.code() == Code::NotFound => Ok(None),
            found => found.map(Some),
        };
        match change {
            Change::Create { key, known } => {
                let Some(info) = stat(key)? else {
                    return Ok(None);
                };
                ensure!(
                    self.way == Way::Direct,
                    "containerd has {key} that it was not told of"
                );
                let layer = (known.kind == Kind::Active).then(|| layer(&info));
                let (key, known) = (key.clone(), known.clone());
                Ok(Some((Change::Create { key, known }, layer.transpose()?)))
            }
            Change::Commit { key, name } if self.way == Way::Containerd => {
                // The daemon may have committed what containerd still knows as active: that
                // is lost to both, as it is with any snapshotter of another process.
                ensure!(
                    stat(name)?.is_none(),
                    "containerd has {name} that it was not told of"
                );
                self.snapshots.remove(key)?;
                let key = key.clone();
                Ok(Some((Change::Remove { key }, None)))
            }
            Change::Commit { key, name } => match (stat(key)?, stat(name)?) {
                (Some(_), None) => Ok(None),
                (None, Some(_)) => {
                    let (key, name) = (key.clone(), name.clone());
                    Ok(Some((Change::Commit { key, name }, None)))
                }
                both => bail!("a commit of {key} as {name} was cut off, and there are {both:?}"),
            },
            Change::Remove { key } => match stat(key)? {
                Some(_) => Ok(None),
                None => Ok(Some((Change::Remove { key: key.clone() }, None))),
            },
            Change::Update { key, note } => {
                let info = self.snapshots.stat(key)?;
                if info.labels.get(NOTE) != Some(note) {
                    return Ok(None);
                }
                let (key, note) = (key.clone(), note.clone());
                Ok(Some((Change::Update { key, note }, None)))
            }
        }
    }

    /// Tries until no kill cuts it off.
    fn retry<T>(&mut self, mut attempt: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        poll("the daemon", AWAY_BOUND, || {
            let outages = self.outages;
            poll("the end of an outage", AWAY_BOUND, || {
                Ok(when(outages.now().is_multiple_of(2)))
            })?;
            let since = outages.now();
            match attempt(self) {
                Ok(done) => Ok(Some(done)),
                Err(_) if outages.excuse(since) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn of_kind(&self, kind: Kind) -> Vec<String> {
        self.known
            .iter()
            .filter(|(_, known)| known.kind == kind)
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Snapshots that are nobody's parent.
    fn leaves(&self) -> Vec<String> {
        self.known
            .keys()
            .filter(|key| self.known.values().all(|known| known.parent != **key))
            .cloned()
            .collect()
    }

    fn one_of(&mut self, names: &[String]) -> String {
        names[self.random.usize(0..names.len())].clone()
    }

    fn new_name(&mut self, what: &str) -> String {
        self.next += 1;
        format!("{}/{what} {}", self.name, self.next)
    }
}

impl Known {
    fn check(&self, info: &Info) -> Result<()> {
        ensure!(
            info.kind() == self.kind && info.parent == self.parent,
            "{info:?}"
        );
        for (name, value) in &self.labels {
            ensure!(info.labels.get(name) == Some(value), "{info:?}");
        }
        if let Some((layer, text)) = &self.content {
            ensure!(fs::read_to_string(layer.join("content"))? == *text);
        }
        Ok(())
    }
}

/// Whether a call got no answer, rather than one that says no.
fn is_cut_off(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled
    ) || std::error::Error::source(status).is_some()
}

fn pairs(labels: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
    labels.iter().map(|(n, v)| (&**n, &**v)).collect()
}
