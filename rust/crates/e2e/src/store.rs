//! Store objects of the tests' own, built by Nix and held by roots of the test's.

use std::{
    collections::BTreeMap,
    fmt, fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::{
    host::{Host, unique},
    process::{run, succeed},
};

/// A derivation whose builder is a script of busybox, the one program that every store here has.
const EXPRESSION: &str = r#"
{ name, script, token, inputs, busybox }:
let shell = "${builtins.storePath busybox}/bin/busybox";
in derivation {
  inherit name inputs token;
  system = builtins.currentSystem;
  builder = shell;
  args = [ "sh" "-euc" script ];
  busybox = shell;
}
"#;

/// A derivation with many outputs, each a file of bytes that do not compress.
const INCOMPRESSIBLE: &str = r#"
{ name, number, bytes, token, busybox }:
let
  shell = "${builtins.storePath busybox}/bin/busybox";
  outputs = builtins.genList (number: "file${toString number}") number;
  files = derivation {
    inherit name outputs bytes token;
    system = builtins.currentSystem;
    builder = shell;
    args = [ "sh" "-euc" ''for file in $outputs; do eval "$busybox head -c $bytes /dev/urandom > \$$file"; done'' ];
    busybox = shell;
  };
in map (output: files.${output}) outputs
"#;

/// Builds store objects that no other test has.
#[derive(Debug)]
pub struct Store {
    roots: PathBuf,
    busybox: String,
}

impl Store {
    /// The machine's store.
    ///
    /// # Errors
    /// There is no busybox to build with.
    pub fn new(host: &Host) -> Result<Self> {
        let roots = host.dir().join("roots");
        fs::create_dir_all(&roots)?;
        Ok(Self {
            roots,
            busybox: host.fixture("busybox")?,
        })
    }

    /// Builds a store object by a shell script that makes `$out` with the applets of
    /// `$busybox`. Objects among `inputs` that it names become references.
    ///
    /// # Errors
    /// What Nix says.
    pub fn build(&self, name: &str, script: &str, inputs: &[&Object]) -> Result<Object> {
        let paths: Vec<_> = inputs.iter().map(|object| object.path()).collect();
        self.build_with(name, script, &paths)
    }

    fn build_with(&self, name: &str, script: &str, inputs: &[&str]) -> Result<Object> {
        let root = self.roots.join(unique(name));
        let mut nix = Command::new("nix-build");
        nix.args(self.derivation(name, script, inputs))
            .arg("--out-link")
            .arg(&root);
        let path = succeed(&mut nix)?.trim_end().to_owned();
        Ok(Object { path, root })
    }

    /// Moves a file into the store, where its name is this.
    ///
    /// # Errors
    /// What Nix says.
    pub fn add(&self, file: &Path, name: &str) -> Result<Object> {
        let dir = self.roots.join(unique("add"));
        fs::create_dir(&dir)?;
        let named = dir.join(name);
        fs::rename(file, &named)?;
        let mut objects =
            self.hold(&succeed(Command::new("nix-store").arg("--add").arg(named))?)?;
        fs::remove_dir_all(dir)?;
        objects.pop().context("nothing was added")
    }

    /// Adds this many small files to the store, which these roots hold, and gives their paths.
    ///
    /// # Errors
    /// What Nix says.
    pub fn many(&self, number: usize) -> Result<Vec<String>> {
        let name = unique("many");
        let dir = self.roots.join(format!("{name}-files"));
        fs::create_dir(&dir)?;
        let mut add = Command::new("nix-store");
        add.arg("--add");
        for number in 0..number {
            let file = dir.join(format!("many-{number}"));
            fs::write(&file, format!("{name} {number}\n"))?;
            add.arg(file);
        }
        let objects = self.hold(&succeed(&mut add)?)?;
        Ok(objects.into_iter().map(|object| object.path).collect())
    }

    /// Builds this many files of bytes that do not compress, each a store object.
    ///
    /// # Errors
    /// What Nix says.
    pub fn incompressible(&self, number: usize, bytes: usize) -> Result<Vec<Object>> {
        let mut nix = Command::new("nix-build");
        nix.args(["--no-out-link", "--expr", INCOMPRESSIBLE])
            .args(["--argstr", "name", "incompressible"])
            .args(["--arg", "number", &number.to_string()])
            .args(["--arg", "bytes", &bytes.to_string()])
            .args(["--argstr", "token", &unique("incompressible")])
            .args(["--argstr", "busybox", &self.busybox]);
        self.hold(&succeed(&mut nix)?)
    }

    /// Holds each of these store paths, one a line, by a root of its own.
    fn hold(&self, paths: &str) -> Result<Vec<Object>> {
        let root = self.roots.join(unique("many"));
        let mut hold = Command::new("nix-store");
        hold.arg("--add-root").arg(&root);
        succeed(hold.arg("--realise").args(paths.lines()))?;
        let objects = paths.lines().enumerate().map(|(index, path)| {
            // As Nix names the roots of one call.
            let mut root = root.clone().into_os_string();
            if index > 0 {
                root.push(format!("-{}", index + 1));
            }
            Object {
                path: path.to_owned(),
                root: root.into(),
            }
        });
        Ok(objects.collect())
    }

    /// Makes a derivation as [`Store::build`] does, without building it: gives the derivation,
    /// held by a root of the test's, and the store path that it would build.
    ///
    /// # Errors
    /// What Nix says.
    pub fn plan(&self, name: &str, script: &str) -> Result<(Object, String)> {
        let root = self.roots.join(unique(name));
        let mut nix = Command::new("nix-instantiate");
        nix.args(self.derivation(name, script, &[]))
            .args(["--indirect", "--add-root"])
            .arg(&root);
        succeed(&mut nix)?;
        let path = fs::read_link(&root)?.to_string_lossy().into_owned();
        let mut query = Command::new("nix-store");
        let output = succeed(query.args(["--query", "--outputs", &path]))?;
        Ok((Object { path, root }, output.trim_end().to_owned()))
    }

    /// The arguments that describe a derivation to `nix-build` and `nix-instantiate`.
    fn derivation(&self, name: &str, script: &str, inputs: &[&str]) -> Vec<String> {
        let inputs = inputs
            .iter()
            .map(|path| format!("(builtins.storePath {path}) "));
        let inputs = format!("[{}]", inputs.collect::<String>());
        let mut arguments = vec!["--expr".to_owned(), EXPRESSION.to_owned()];
        arguments.extend(["--arg".to_owned(), "inputs".to_owned(), inputs]);
        for (argument, value) in [
            ("name", name),
            ("script", script),
            ("token", &unique(name)),
            ("busybox", &self.busybox),
        ] {
            arguments.extend(["--argstr", argument, value].map(str::to_owned));
        }
        arguments
    }

    /// Builds a closure-info: a directory with the closure of `objects` in its file `store-paths`.
    ///
    /// # Errors
    /// What Nix says.
    pub fn closure_info(&self, objects: &[&Object]) -> Result<Object> {
        let mut query = Command::new("nix-store");
        query.args(["--query", "--requisites"]);
        query.args(objects.iter().map(|object| object.path()));
        let closure = succeed(&mut query)?;
        let mut paths: Vec<_> = closure.lines().collect();
        paths.sort_unstable();
        paths.dedup();
        let lines = paths.join("\n");
        let script = format!("$busybox mkdir $out; echo '{lines}' > $out/store-paths");
        self.build_with("closure-info", &script, &paths)
    }
}

/// A store object that a root of the test's holds until it is released.
#[derive(Debug)]
pub struct Object {
    path: String,
    root: PathBuf,
}

impl Object {
    /// Its store path.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it is in the store, whatever a link leads to.
    #[must_use]
    pub fn exists(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok()
    }

    /// Removes the test's own root, so that only what is tested holds the object.
    ///
    /// # Errors
    /// The root is gone already.
    pub fn release(&self) -> Result<()> {
        fs::remove_file(&self.root).with_context(|| format!("cannot release {}", self.path))
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

/// How often in a row the collector may abort.
///
/// It does so once in some thousand runs beside other Nix processes (2.26 and 2.34): where one of
/// them hangs up before the thread that serves it is noted, the next one's is destroyed without
/// having been joined (`LocalStore::collectGarbage`, `libstore/gc.cc`). What it has not done by
/// then it does the next time.
const ABORTS: u32 = 3;

/// Runs Nix's garbage collector.
///
/// # Errors
/// What Nix says.
pub fn collect_garbage() -> Result<()> {
    let mut collector = Command::new("nix-collect-garbage");
    for _ in 0..ABORTS {
        let ended = run(&mut collector)?;
        if ended.status.signal() != Some(Signal::ABORT.as_raw()) {
            return ended.success().map(drop).context("nix-collect-garbage");
        }
    }
    succeed(&mut collector).map(drop)
}

/// Releases objects and has them deleted, as on a machine that never had them.
///
/// # Errors
/// Something else holds one of them.
pub fn evict(objects: &[Object]) -> Result<()> {
    for object in objects {
        object.release()?;
    }
    collect_garbage()?;
    are_gone(objects)
}

/// Checks that none of the objects is in the store.
///
/// # Errors
/// Names one that is, and its roots.
pub fn are_gone(objects: &[Object]) -> Result<()> {
    match objects.iter().find(|object| object.exists()) {
        Some(object) => bail!("{object} is left, held by {:?}", roots_of(object.path())),
        None => Ok(()),
    }
}

/// The indirect roots below a directory that Nix has a note of, whether or not they still exist.
///
/// # Errors
/// The directory of notes cannot be read.
pub fn registered_roots(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut roots = Vec::new();
    for entry in fs::read_dir("/nix/var/nix/gcroots/auto")? {
        // Another Nix may forget one meanwhile.
        if let Ok(root) = fs::read_link(entry?.path())
            && root.starts_with(dir)
        {
            roots.push(root);
        }
    }
    Ok(roots)
}

/// The roots that hold a store path, as Nix knows them.
///
/// # Errors
/// What Nix says.
pub fn roots_of(path: &str) -> Result<Vec<String>> {
    let roots = succeed(Command::new("nix-store").args(["--query", "--roots", path]))?;
    Ok(roots.lines().map(str::to_owned).collect())
}

/// The NAR size of a store path in bytes, as Nix says it.
///
/// # Errors
/// What Nix says.
pub fn nar_size(path: &str) -> Result<u64> {
    let size = succeed(Command::new("nix-store").args(["--query", "--size", path]))?;
    Ok(size.trim_end().parse()?)
}

/// Everything below a path, by name, with what a write would change: kind and mode,
/// owner, times and content.
///
/// # Errors
/// It cannot be read.
pub fn fingerprint(path: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut rest = vec![path.to_owned()];
    while let Some(path) = rest.pop() {
        let metadata = fs::symlink_metadata(&path)?;
        let content = if metadata.is_symlink() {
            fs::read_link(&path)?.to_string_lossy().into_owned()
        } else if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                rest.push(entry?.path());
            }
            String::new()
        } else {
            crate::image::sha256(&fs::read(&path)?)
        };
        let facts = format!(
            "{:o} {}:{} {}.{} {content}",
            metadata.permissions().mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        );
        found.insert(path, facts);
    }
    Ok(found)
}
