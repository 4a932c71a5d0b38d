//! Realisation: having Nix provide the store paths of a layer, under GC roots.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::process::Command;
use tracing::{debug, info};

use crate::{
    Closure, Error, GcRoots, LayerClosure, StoreDir, StorePath,
    process::{self, Output, Stopped},
    store_path::shorten,
};

/// The stable command line interface of Nix, looked up on the PATH.
const NIX_STORE: &str = "nix-store";

/// Bytes of store paths in one call. Linux allows a quarter of the stack limit
/// for arguments and environment, 2 MiB by default (execve(2)); 10,000 paths and
/// more fit in one call.
const MAX_ARGUMENT_BYTES: usize = 1024 * 1024;

/// How a [`Realiser`] is to work.
#[derive(Clone, Debug)]
pub struct RealiserOptions {
    /// The store that the paths belong to.
    pub store_dir: StoreDir,
    /// A program that is called in Nix's place for each path, with two arguments:
    /// the link to make (a GC root) and the store path.
    pub external_builder: Option<PathBuf>,
    /// How long one call may take; `None` is without limit.
    pub timeout: Option<Duration>,
}

/// Has the store paths of layers substituted or built.
#[derive(Clone, Debug)]
pub struct Realiser(RealiserOptions);

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

    /// Provides every store path of `layer` and holds it by GC roots in `roots`.
    ///
    /// Listed paths that Nix's database has as requisites of the closure-info object are
    /// held by its root; the others get a root each, all in one call. When this
    /// returns an error, or is dropped before its end, `roots` may hold links
    /// already: it is the caller's to remove.
    ///
    /// # Errors
    /// What Nix or the builder says ([`Error::Failed`], [`Error::TimedOut`],
    /// [`Error::Start`]), a closure-info object that is none, and [`Error::NotRealised`].
    pub async fn realise(&self, layer: &LayerClosure, roots: &GcRoots) -> Result<Closure, Error> {
        roots.create()?;
        let mut closure = layer.paths.clone();
        let mut unlinked = layer.paths.clone();
        if let Some(closure_info) = &layer.closure_info {
            self.realise_one(closure_info, &roots.closure_info_link())
                .await?;
            let listed = Closure::read_closure_info(&self.0.store_dir, closure_info)?;
            let listed_unheld = self.not_held_by(closure_info, &listed).await?;
            // Paths with names of their own get links of their own even where something holds
            // them: the links are the record of what is mounted.
            unlinked = union(unlinked, listed_unheld)?;
            closure = union(closure, listed)?;
        }
        self.realise_all(&unlinked, roots).await?;
        match closure.paths().iter().find(|path| !exists(path)) {
            Some(missing) => Err(Error::NotRealised {
                program: self.program(),
                path: missing.clone(),
            }),
            None => {
                info!(paths = closure.paths().len(), "realised closure");
                Ok(closure)
            }
        }
    }

    async fn realise_one(&self, path: &StorePath, link: &Path) -> Result<(), Error> {
        let mut command = match &self.0.external_builder {
            Some(builder) => {
                let mut command = Command::new(builder);
                command.args([link.as_os_str(), path.as_path().as_os_str()]);
                command
            }
            None => realise_command(std::slice::from_ref(path), link),
        };
        self.run(&mut command, std::slice::from_ref(path)).await?;
        Ok(())
    }

    async fn realise_all(&self, closure: &Closure, roots: &GcRoots) -> Result<(), Error> {
        if self.0.external_builder.is_some() {
            for path in closure.paths() {
                self.realise_one(path, &roots.link_of(path)).await?;
            }
            return Ok(());
        }
        for (call, paths) in calls(closure.paths(), MAX_ARGUMENT_BYTES)
            .into_iter()
            .enumerate()
        {
            self.run(&mut realise_command(paths, &roots.paths_link(call)), paths)
                .await?;
        }
        Ok(())
    }

    /// The paths of `closure` that the root of `closure_info` does not keep alive.
    ///
    /// An object that nixpkgs' `closureInfo` built refers to every path that it
    /// lists. One made otherwise need not, and then the collector would take
    /// paths from under a running container.
    async fn not_held_by(
        &self,
        closure_info: &StorePath,
        closure: &Closure,
    ) -> Result<Closure, Error> {
        if self.0.external_builder.is_some() {
            // The builder stands for Nix: its link holds what it has provided.
            return Ok(closure
                .paths()
                .iter()
                .filter(|path| !exists(path))
                .cloned()
                .collect());
        }
        let subject = std::slice::from_ref(closure_info);
        let mut query = Command::new(NIX_STORE);
        query
            .args(["--query", "--requisites"])
            .args(as_paths(subject));
        let output = self.run(&mut query, subject).await?;
        let held =
            Closure::parse_list(&self.0.store_dir, &String::from_utf8_lossy(&output.stdout))?;
        Ok(closure
            .paths()
            .iter()
            .filter(|path| held.paths().binary_search(path).is_err())
            .cloned()
            .collect())
    }

    async fn run(&self, command: &mut Command, subject: &[StorePath]) -> Result<Output, Error> {
        let program = self.program();
        debug!(%program, paths = subject.len(), "calling");
        let describe = || describe(subject);
        match process::run(command, self.0.timeout).await {
            Ok(output) if output.status.success() => Ok(output),
            Ok(output) => Err(Error::Failed {
                program,
                subject: describe(),
                status: output.status,
                stderr: output.stderr,
            }),
            Err(Stopped::TimedOut(stderr)) => Err(Error::TimedOut {
                program,
                subject: describe(),
                after: self.0.timeout.unwrap_or_default(),
                stderr,
            }),
            Err(Stopped::Io(reason)) => Err(Error::Start { program, reason }),
        }
    }

    fn program(&self) -> String {
        match &self.0.external_builder {
            Some(builder) => shorten(&builder.to_string_lossy()),
            None => format!("`{NIX_STORE}`"),
        }
    }
}

fn union(one: Closure, other: Closure) -> Result<Closure, Error> {
    one.into_iter()
        .chain(other)
        .collect::<Closure>()
        .check_size()
}

fn realise_command(paths: &[StorePath], link: &Path) -> Command {
    let mut command = Command::new(NIX_STORE);
    command
        .arg("--realise")
        .args(as_paths(paths))
        .arg("--add-root")
        .arg(link);
    command
}

fn as_paths(paths: &[StorePath]) -> impl Iterator<Item = &Path> {
    paths.iter().map(StorePath::as_path)
}

/// Splits the paths into calls of at most `budget` bytes of arguments each.
fn calls(paths: &[StorePath], budget: usize) -> Vec<&[StorePath]> {
    let mut calls = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, path) in paths.iter().enumerate() {
        // The kernel counts the closing zero and the pointer too.
        let cost = path.as_str().len() + 1 + size_of::<usize>();
        if bytes + cost > budget && at > start {
            calls.push(&paths[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += cost;
    }
    if start < paths.len() {
        calls.push(&paths[start..]);
    }
    calls
}

fn describe(paths: &[StorePath]) -> String {
    match paths {
        [] => "no store path".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

/// A store object that is a symbolic link exists whether or not its target does.
fn exists(path: &StorePath) -> bool {
    fs::symlink_metadata(path.as_path()).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const A: &str = "8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-a";
    const B: &str = "9kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-b";
    const C: &str = "7kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-c";

    struct Store {
        dir: tempfile::TempDir,
        store_dir: StoreDir,
    }

    impl Store {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store_dir = StoreDir::new(dir.path().to_str().unwrap()).unwrap();
            Self { dir, store_dir }
        }

        fn path(&self, base: &str) -> StorePath {
            self.store_dir
                .parse(&format!("{}/{base}", self.store_dir))
                .unwrap()
        }

        fn realiser(&self, builder: &str) -> Realiser {
            let program = self.dir.path().join("builder");
            fs::write(&program, format!("#!/bin/sh\n{builder}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            Realiser::new(RealiserOptions {
                store_dir: self.store_dir.clone(),
                external_builder: Some(program),
                timeout: Some(Duration::from_secs(1)),
            })
        }

        async fn realise(
            &self,
            builder: &str,
            layer: &LayerClosure,
        ) -> (Result<Closure, Error>, GcRoots) {
            let realiser = self.realiser(builder);
            let roots = realiser.roots(self.dir.path().join("gcroots/7"));
            (realiser.realise(layer, &roots).await, roots)
        }
    }

    #[tokio::test]
    async fn an_external_builder_gets_link_and_path_and_its_links_are_the_closure() {
        let store = Store::new();
        let layer = LayerClosure {
            closure_info: None,
            paths: [store.path(B), store.path(A)].into_iter().collect(),
        };
        let (closure, roots) = store
            .realise(r#"echo x > "$2" && ln -s "$2" "$1""#, &layer)
            .await;
        assert_eq!(closure.unwrap(), layer.paths);
        assert_eq!(roots.read().unwrap(), Some(layer.paths));
    }

    #[tokio::test]
    async fn a_closure_info_stands_for_the_paths_that_it_lists() {
        let store = Store::new();
        let layer = LayerClosure {
            closure_info: Some(store.path(A)),
            paths: Closure::default(),
        };
        let builder = format!(
            r#"case "$2" in *-a) mkdir "$2" && echo {} > "$2/store-paths";; *) echo x > "$2";; esac; ln -s "$2" "$1""#,
            store.path(B)
        );
        let (closure, roots) = store.realise(&builder, &layer).await;
        let expected: Closure = [store.path(B)].into_iter().collect();
        assert_eq!(closure.unwrap(), expected);
        assert_eq!(roots.read().unwrap(), Some(expected));
    }

    #[tokio::test]
    async fn of_a_layer_in_both_formats_the_union_is_recorded() {
        let store = Store::new();
        // Here already, and not in the list of the closure-info.
        fs::write(store.path(C).as_path(), "").unwrap();
        let layer = LayerClosure {
            closure_info: Some(store.path(A)),
            paths: [store.path(C)].into_iter().collect(),
        };
        let builder = format!(
            r#"case "$2" in *-a) mkdir "$2" && echo {} > "$2/store-paths";; *) echo x > "$2";; esac; ln -s "$2" "$1""#,
            store.path(B)
        );
        let (closure, roots) = store.realise(&builder, &layer).await;
        let union: Closure = [store.path(B), store.path(C)].into_iter().collect();
        assert_eq!(closure.unwrap(), union);
        assert_eq!(roots.read().unwrap(), Some(union));
    }

    #[tokio::test]
    async fn failures_say_what_failed_and_why() {
        let store = Store::new();
        let layer = LayerClosure {
            closure_info: None,
            paths: [store.path(A)].into_iter().collect(),
        };
        for (builder, expected) in [
            ("echo no such luck >&2; exit 4", "no such luck"),
            ("sleep 100", "did not end within 1 s"),
            ("exit 0", "does not exist"),
        ] {
            let (closure, _) = store.realise(builder, &layer).await;
            let message = closure.unwrap_err().to_string();
            assert!(
                message.contains(expected) && message.contains("builder"),
                "{message}"
            );
        }
        let realiser = Realiser::new(RealiserOptions {
            store_dir: store.store_dir.clone(),
            external_builder: Some("/nowhere/builder".into()),
            timeout: None,
        });
        let roots = realiser.roots(store.dir.path().join("gcroots/8"));
        let message = realiser
            .realise(&layer, &roots)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("/nowhere/builder") && message.contains("no such program"),
            "{message}"
        );
    }

    #[test]
    fn calls_keep_every_path_in_order_within_the_budget() {
        let store_dir = StoreDir::default();
        let paths: Vec<_> = (0..100)
            .map(|n| store_dir.parse(&format!("/nix/store/{A}-{n}")).unwrap())
            .collect();
        for budget in [1, 500, 100_000] {
            let calls = calls(&paths, budget);
            assert_eq!(calls.concat(), paths);
            assert!(calls.iter().all(|call| !call.is_empty()));
        }
        assert_eq!(calls(&paths, 100_000).len(), 1);
        assert_eq!(calls(&paths, 1).len(), 100);
        assert!(calls(&[], 1).is_empty());
    }
}
