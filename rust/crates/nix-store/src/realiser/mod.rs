//! Realisation: having Nix provide the store paths of a layer, under GC roots.

mod sizes;
#[cfg(test)]
mod tests;

use std::{
    fs,
    io::{self, ErrorKind},
    num::NonZero,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use futures_util::future::try_join_all;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{
    Closure, Error, GcRoots, LayerClosure, StoreDir, StorePath, collector,
    nix_cli::{self, NIX_STORE},
    process::{self, Output, Stopped},
    store_path::shorten,
};

/// The fewest paths that are worth a call of Nix beside another. It makes a root in
/// about 0.1 ms, and takes 20 ms to start.
const MIN_PATHS_A_CALL: usize = 250;

/// How often a layer is realised anew because the collector has taken a path of it meanwhile.
///
/// One that is running may have chosen a path for deletion before Nix finds it valid and
/// roots it (see [`collector`]). Asked again, Nix fetches the path, and that run leaves it
/// alone: it has dealt with it.
const REPETITIONS: usize = 3;

/// How a [`Realiser`] is to work.
#[derive(Clone, Debug)]
pub struct RealiserOptions {
    /// The store that the paths belong to.
    pub store_dir: StoreDir,
    /// A program that is called in Nix's place for each path, with two arguments:
    /// the link to make (a GC root) and the store path. Nix makes the links that it does not.
    pub external_builder: Option<PathBuf>,
    /// How long one call may take; `None` is without limit.
    pub timeout: Option<Duration>,
}

/// Has the store paths of layers substituted or built.
#[derive(Clone, Debug)]
pub struct Realiser(RealiserOptions);

/// What came of a realisation.
#[derive(Debug)]
pub struct Realised {
    /// The store paths of the layer: in the store, and held.
    pub closure: Closure,
    /// Those among them, and the closure-info, that came into the store meanwhile.
    pub fetched: Vec<StorePath>,
}

impl Realiser {
    /// A realiser; nothing is run yet.
    #[must_use]
    pub fn new(options: RealiserOptions) -> Self {
        Self(options)
    }

    /// The GC roots in `dir`, for paths of this realiser's store.
    #[must_use]
    pub fn roots(&self, dir: PathBuf) -> GcRoots {
        GcRoots::new(dir, self.0.store_dir.clone())
    }

    /// Whether everything that `layer` names is in the store, so that realising it only
    /// makes roots. Nothing holds it yet.
    ///
    /// It blocks, for as long as it takes to look at each path. A closure-info that is none
    /// counts as present: it is for [`Realiser::realise`] to say so.
    #[must_use]
    pub fn is_present(&self, layer: &LayerClosure) -> bool {
        let all = |closure: &Closure| closure.paths().iter().all(StorePath::exists);
        let listed = |closure_info| Closure::read_closure_info(&self.0.store_dir, closure_info);
        all(&layer.paths)
            && layer.closure_info.as_ref().is_none_or(|closure_info| {
                closure_info.exists() && listed(closure_info).is_ok_and(|listed| all(&listed))
            })
    }

    /// Provides every store path of `layer` and holds it by GC roots in `roots`.
    ///
    /// Listed paths that the closure-info refers to are held by its root; the others
    /// get a root each. When this returns an error, `roots` may hold links already: it is
    /// the caller's to remove. When `cancel` says so, what runs is asked to end and waited for;
    /// when this is dropped before its end, what runs is only killed.
    ///
    /// # Errors
    /// What Nix or the builder says ([`Error::Failed`], [`Error::TimedOut`],
    /// [`Error::Start`]), a closure-info object that is none, [`Error::NotRealised`], and
    /// [`Error::Cancelled`].
    pub async fn realise(
        &self,
        layer: &LayerClosure,
        roots: &GcRoots,
        cancel: &CancellationToken,
    ) -> Result<Realised, Error> {
        roots.create()?;
        let began = changed(roots.dir()).unwrap_or_default();
        for _ in 0..REPETITIONS {
            match self.realise_once(layer, roots, began, cancel).await {
                Err(error) if self.is_collected(&error) => {
                    info!(%error, "realising again what the garbage collector has taken meanwhile");
                }
                done => return done,
            }
        }
        self.realise_once(layer, roots, began, cancel).await
    }

    /// Whether this may come of the collector. A closure-info that is none looks like one that
    /// is being deleted, and costs a few calls more.
    fn is_collected(&self, error: &Error) -> bool {
        let gone = matches!(
            error,
            Error::NotRealised { .. } | Error::NoStorePaths { .. } | Error::Collected { .. }
        );
        gone && self.0.external_builder.is_none()
    }

    async fn realise_once(
        &self,
        layer: &LayerClosure,
        roots: &GcRoots,
        began: Changed,
        cancel: &CancellationToken,
    ) -> Result<Realised, Error> {
        let realisation = Realisation {
            options: &self.0,
            roots,
            cancel,
        };
        let mut closure = layer.paths.clone();
        let mut unlinked = layer.paths.clone();
        if let Some(closure_info) = &layer.closure_info {
            let held = realisation.closure_info(closure_info).await?;
            let listed = Closure::read_closure_info(&self.0.store_dir, closure_info)?;
            let unheld = match held {
                Held::ByReference(references) => listed.without(|path| references.contains(path)),
                Held::IfPresent => listed.without(StorePath::exists),
            };
            // Paths with names of their own get links of their own even where something holds
            // them: the links are the record of what is mounted.
            unlinked = union(unlinked, unheld)?;
            closure = union(closure, listed)?;
        }
        realisation.paths(&unlinked).await?;
        realisation.collector_passes().await?;
        let fetched =
            self.fetched_since(began, closure.paths().iter().chain(&layer.closure_info))?;
        info!(
            paths = closure.paths().len(),
            fetched = fetched.len(),
            "realised closure"
        );
        Ok(Realised { closure, fetched })
    }

    /// The paths that came into the store not before `began`.
    fn fetched_since<'a>(
        &self,
        began: Changed,
        paths: impl Iterator<Item = &'a StorePath>,
    ) -> Result<Vec<StorePath>, Error> {
        let mut fetched = Vec::new();
        for path in paths {
            match changed(path.as_path()) {
                Ok(changed) if changed >= began => fetched.push(path.clone()),
                Ok(_) => {}
                Err(_) => return Err(not_realised(&self.0, path)),
            }
        }
        Ok(fetched)
    }
}

/// One realisation: for whom the programs run, and until when.
struct Realisation<'a> {
    options: &'a RealiserOptions,
    roots: &'a GcRoots,
    cancel: &'a CancellationToken,
}

/// What the root of a closure-info holds besides the object itself.
enum Held {
    /// What it refers to, as Nix has it registered. An object that nixpkgs' `closureInfo`
    /// built refers to every path that it lists. One made otherwise need not, and then the
    /// collector would take paths from under a running container.
    ByReference(Closure),
    /// Whatever it lists and is in the store: the builder that made the root stands for Nix, and
    /// cannot be asked.
    IfPresent,
}

/// Who has made the root of a path that the builder has provided.
enum RootBy {
    Builder,
    Nix,
}

impl Realisation<'_> {
    async fn closure_info(&self, path: &StorePath) -> Result<Held, Error> {
        let link = self.roots.closure_info_link();
        if let Some(builder) = &self.options.external_builder {
            return match self.build(builder, path, &link).await? {
                RootBy::Builder => Ok(Held::IfPresent),
                RootBy::Nix => self.references(path).await.map(Held::ByReference),
            };
        }
        let subject = std::slice::from_ref(path);
        let before = changed(path.as_path()).ok();
        let realise = self.provide(subject, &link);
        // The references of a store object never change, so that it need not be realised first
        // to ask for them. What counts is that it is the same object afterwards: had it been
        // deleted and fetched anew, it would have been changed since.
        let (realised, early) = tokio::join!(realise, async {
            match before {
                Some(_) => self.references(path).await.ok(),
                None => None,
            }
        });
        realised?;
        match early {
            Some(references) if changed(path.as_path()).ok() == before => {
                Ok(Held::ByReference(references))
            }
            _ => self.references(path).await.map(Held::ByReference),
        }
    }

    async fn references(&self, path: &StorePath) -> Result<Closure, Error> {
        let subject = std::slice::from_ref(path);
        let output = match self.run(&mut nix_cli::registration(path), subject).await {
            // The collector takes an object from the database before it deletes it.
            Err(error @ Error::Failed { .. }) => {
                let valid = sizes::valid(self.options, subject, self.cancel).await?;
                return Err(match valid.is_empty() {
                    true => collected(path, error),
                    false => error,
                });
            }
            done => done?,
        };
        let answer = String::from_utf8_lossy(&output.stdout);
        let references = nix_cli::references(&self.options.store_dir, path, &answer)?;
        // Where Nix does not answer as expected, every path gets a root of its own.
        Ok(references.unwrap_or_default())
    }

    /// Realises paths that get a root each.
    async fn paths(&self, closure: &Closure) -> Result<(), Error> {
        let paths = closure.paths();
        if let Some(builder) = &self.options.external_builder {
            for path in paths {
                self.build(builder, path, &self.roots.link_of(path)).await?;
            }
            return Ok(());
        }
        let at_once = calls_at_once(paths);
        let calls: Vec<_> = nix_cli::calls(paths, at_once)
            .into_iter()
            .enumerate()
            .collect();
        for calls in calls.chunks(at_once) {
            let calls = calls.iter().map(|&(number, paths)| async move {
                let link = self.roots.paths_link(number);
                self.provide(paths, &link).await
            });
            try_join_all(calls).await?;
        }
        Ok(())
    }

    /// Has Nix provide these paths in one call, with their roots at `link` and beside it.
    async fn provide(&self, paths: &[StorePath], link: &Path) -> Result<(), Error> {
        let present: Vec<_> = paths.iter().filter(|path| path.exists()).collect();
        match self.run(&mut nix_cli::realise(paths, link), paths).await {
            // Nix looks for a path twice, and the collector may come in between.
            Err(error @ Error::Failed { .. }) => {
                self.collector_passes().await?;
                Err(match present.into_iter().find(|path| !path.exists()) {
                    Some(path) => collected(path, error),
                    None => error,
                })
            }
            done => done.map(drop),
        }
    }

    /// Waits for a collector that is at work, as long as somebody waits for this realisation.
    async fn collector_passes(&self) -> Result<(), Error> {
        tokio::select! {
            () = collector::passes() => Ok(()),
            () = self.cancel.cancelled() => Err(Error::Cancelled),
        }
    }

    /// Has the builder provide a path, and sees to it that `link` is its root.
    ///
    /// A builder may know nothing of roots, as `nix copy` does. What it has provided then is held
    /// by nothing until Nix makes the root, so that this is done before the next path is.
    async fn build(&self, builder: &Path, path: &StorePath, link: &Path) -> Result<RootBy, Error> {
        let subject = std::slice::from_ref(path);
        let mut command = Command::new(builder);
        command.args([link.as_os_str(), path.as_path().as_os_str()]);
        self.run(&mut command, subject).await?;
        let other_link = |found: String| Error::OtherLink {
            program: name(builder),
            link: link.into(),
            path: path.clone(),
            found: found.into(),
        };
        match fs::read_link(link) {
            Ok(found) if found == path.as_path() => return Ok(RootBy::Builder),
            Ok(found) => {
                let found = shorten(&found.to_string_lossy());
                return Err(other_link(format!("it leads to {found}")));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(other_link(format!("it cannot be read as one: {error}"))),
        }
        if !path.exists() {
            return Err(not_realised(self.options, path));
        }
        match self
            .run(&mut nix_cli::realise(subject, link), subject)
            .await
        {
            Err(source @ (Error::Failed { .. } | Error::Start { .. })) => Err(Error::NotRooted {
                program: name(builder),
                path: path.clone(),
                link: link.to_owned(),
                source: Box::new(source),
            }),
            done => done.map(|_| RootBy::Nix),
        }
    }

    async fn run(&self, command: &mut Command, subject: &[StorePath]) -> Result<Output, Error> {
        run(self.options, command, subject, self.cancel).await
    }
}

/// How many calls of Nix make the roots of these paths in the shortest time.
///
/// What is to be fetched goes into one call: Nix sees to it that no path is fetched twice and
/// how many are fetched at once.
fn calls_at_once(paths: &[StorePath]) -> usize {
    if !paths.iter().all(StorePath::exists) {
        return 1;
    }
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    processors.min(paths.len() / MIN_PATHS_A_CALL).max(1)
}

async fn run(
    options: &RealiserOptions,
    command: &mut Command,
    subject: &[StorePath],
    cancel: &CancellationToken,
) -> Result<Output, Error> {
    let program = name(Path::new(command.as_std().get_program()));
    debug!(%program, paths = subject.len(), "calling");
    match process::run(command, options.timeout, cancel).await {
        Ok(output) if output.status.success() => Ok(output),
        Ok(output) => Err(Error::Failed {
            program,
            subject: describe(subject),
            status: output.status,
            stderr: output.stderr,
        }),
        Err(Stopped::TimedOut(stderr)) => Err(Error::TimedOut {
            program,
            subject: describe(subject),
            after: options.timeout.unwrap_or_default(),
            stderr,
        }),
        Err(Stopped::Cancelled) => Err(Error::Cancelled),
        Err(Stopped::Io(reason)) => Err(Error::Start { program, reason }),
    }
}

fn collected(path: &StorePath, source: Error) -> Error {
    Error::Collected {
        path: path.clone(),
        source: Box::new(source),
    }
}

fn not_realised(options: &RealiserOptions, path: &StorePath) -> Error {
    let builder = options.external_builder.as_deref();
    Error::NotRealised {
        program: name(builder.unwrap_or(Path::new(NIX_STORE))),
        path: path.clone(),
    }
}

/// A program as messages call it.
fn name(program: &Path) -> String {
    match program == Path::new(NIX_STORE) {
        true => format!("`{NIX_STORE}`"),
        false => shorten(&program.to_string_lossy()),
    }
}

fn union(one: Closure, other: Closure) -> Result<Closure, Error> {
    one.into_iter()
        .chain(other)
        .collect::<Closure>()
        .check_size()
}

fn describe(paths: &[StorePath]) -> String {
    match paths {
        [] => "no store path".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

/// When an inode last changed, in seconds and nanoseconds. A store object that is built or
/// fetched changes then, whatever modification time Nix gives it, and never again.
type Changed = (i64, i64);

fn changed(path: &Path) -> io::Result<Changed> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.ctime(), metadata.ctime_nsec()))
}
