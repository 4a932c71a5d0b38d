//! The unix socket: never taken from a live daemon, never left to a dead one.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    future::Future,
    io::{self, ErrorKind},
    iter,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt, stream};
use tokio_stream::wrappers::UnixListenerStream;
use tracing::warn;

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Somebody answers there.
    #[error(
        "another program serves on {}: stop it, or choose another socket",
        .address.display()
    )]
    InUse { address: PathBuf },
    /// Something that is not a socket is in the way, and is not ours to delete.
    #[error("{} exists and is not a socket: move it away, or choose another socket", .address.display())]
    NotASocket { address: PathBuf },
    /// The configured group does not exist.
    #[error("`socket_group` names the group {group:?}, which does not exist")]
    NoSuchGroup { group: String },
    /// Any other failure.
    #[error("cannot {operation} {}", .path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Tests whether a socket can be bound at `path`; an error is what is wrong with it.
pub(crate) fn check_path(path: &Path) -> Result<(), String> {
    if !path.is_absolute() {
        return Err("is not an absolute path (and has no `unix://` before it)".to_owned());
    }
    // sun_path of unix(7) with its closing zero, and room for the name it is bound under first.
    match path.as_os_str().len() {
        ..=100 => Ok(()),
        bytes => Err(format!(
            "has {bytes} bytes; the path of a socket may have 100"
        )),
    }
}

/// An address that is nobody else's from now on, and where nobody listens yet.
#[derive(Debug)]
pub(crate) struct Address {
    path: PathBuf,
    gid: Option<u32>,
    /// Of two daemons that start at once, one gets it.
    lock: File,
}

impl Drop for Address {
    /// Closing would not be enough: a child process that has not come to its exec yet has the file
    /// open, too.
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

/// How long an address may stay in use by a daemon that is gone.
const HANDOVER: Duration = Duration::from_secs(3);

/// How often it is looked whether the address is free.
const HANDOVER_POLL: Duration = Duration::from_millis(20);

/// How long nobody is taken after that has failed: mostly, the process has no file descriptor left.
const ACCEPT_BACKOFF: Duration = Duration::from_secs(1);

/// Says why a connection could not be taken, and waits. It stays in the queue, and would fail again at
/// once.
pub(crate) async fn not_accepted(error: &io::Error) {
    warn!(
        %error,
        "cannot take a connection, and tries again in a second (LimitNOFILE= of the unit bounds open files)"
    );
    tokio::time::sleep(ACCEPT_BACKOFF).await;
}

/// Tries again for a moment while an address is in use: a process that a killed daemon was just
/// starting has its files open until its exec, and so holds its locks and its sockets.
pub(crate) async fn when_free<T, E>(
    attempt: impl Fn() -> Result<T, E>,
    in_use: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error) if in_use(&error) && start.elapsed() < HANDOVER => {
                tokio::time::sleep(HANDOVER_POLL).await;
            }
            done => return done,
        }
    }
}

impl Address {
    /// As [`Address::claim`], when it is free.
    pub(crate) async fn claim_when_free(path: &Path, group: Option<&str>) -> Result<Self, Error> {
        let in_use = |error: &Error| matches!(error, Error::InUse { .. });
        when_free(|| Self::claim(path, group), in_use).await
    }

    /// Takes `path` for a socket of its owner (mode 0600), and with a group of its members too (0660).
    fn claim(path: &Path, group: Option<&str>) -> Result<Self, Error> {
        let gid = group.map(group_id).transpose()?;
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)
                .map_err(io_error("create directory", parent))?;
        }
        let lock = lock(path)?;
        make_way(path)?;
        Ok(Self {
            path: path.to_owned(),
            gid,
            lock,
        })
    }

    /// Listens. The socket is bound under another name first, so that it appears with its final
    /// mode and owner, and only once it listens.
    pub(crate) fn listen(self) -> Result<Socket, Error> {
        let unready = self.path.with_added_extension("new");
        match fs::remove_file(&unready) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io_error("replace", &unready)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&unready).map_err(io_error("listen on", &unready))?;
        let publish = || {
            let mode = if self.gid.is_some() { 0o660 } else { 0o600 };
            fs::set_permissions(&unready, Permissions::from_mode(mode))?;
            if self.gid.is_some() {
                chown(&unready, None, self.gid)?;
            }
            listener.set_nonblocking(true)?;
            let inode = fs::symlink_metadata(&unready)?.ino();
            fs::rename(&unready, &self.path)?;
            Ok(inode)
        };
        let inode = publish().map_err(|source| {
            // The error that counts is the one at hand.
            let _ = fs::remove_file(&unready);
            io_error("set up", &self.path)(source)
        })?;
        Ok(Socket {
            listener,
            inode,
            address: self,
        })
    }
}

/// A listening socket, which is deleted when this is dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    inode: u64,
    address: Address,
}

impl Socket {
    /// A handle on the listening socket.
    pub(crate) fn listener(&self) -> Result<tokio::net::UnixListener, Error> {
        self.listener
            .try_clone()
            .and_then(tokio::net::UnixListener::from_std)
            .map_err(io_error("listen on", &self.address.path))
    }

    /// Whoever connects until `stop` has ended, and whoever waited to be taken by then.
    ///
    /// containerd connects again while its last connection is being closed. Where it finds no socket,
    /// it looks again every 10 ms for a second, with its calls waiting; but a connection that breaks
    /// off before it is answered makes them fail for a second or more (containerd 1.7 to 2.2,
    /// `pkg/dialer`, and gRPC's back-off). So the socket goes first, and nobody who has found it is
    /// left without an answer.
    pub(crate) fn connections(
        &self,
        stop: impl Future<Output = ()>,
    ) -> Result<impl Stream<Item = io::Result<tokio::net::UnixStream>>, Error> {
        let listener = self.listener()?;
        let withdrawn = async {
            stop.await;
            self.withdraw();
        };
        let waiting = stream::iter(iter::from_fn(|| self.waiting()));
        let accepted = UnixListenerStream::new(listener).then(|accepted| async {
            if let Err(error) = &accepted {
                not_accepted(error).await;
            }
            accepted
        });
        Ok(accepted.take_until(withdrawn).chain(waiting))
    }

    /// Deletes the socket, so that nobody finds it any more; only our own: an administrator may have
    /// put another in its place.
    fn withdraw(&self) {
        let path = &self.address.path;
        if fs::symlink_metadata(path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(path);
        }
    }

    /// The next that has connected and was not taken yet.
    fn waiting(&self) -> Option<io::Result<tokio::net::UnixStream>> {
        let (stream, _) = self.listener.accept().ok()?;
        let ready = stream.set_nonblocking(true);
        Some(ready.and_then(|()| tokio::net::UnixStream::from_std(stream)))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// Adapter for `map_err` that names what was done to which path.
fn io_error(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        operation,
        path: path.clone(),
        source,
    }
}

fn group_id(group: &str) -> Result<u32, Error> {
    let unknown = || Error::NoSuchGroup {
        group: group.to_owned(),
    };
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let found = nix::unistd::Group::from_name(group).map_err(|errno| Error::Io {
        operation: "look up the group of",
        path: group.into(),
        source: errno.into(),
    })?;
    Ok(found.ok_or_else(unknown)?.gid.as_raw())
}

/// Takes the lock beside the socket. The file stays: deleting it would free the lock's name
/// while another daemon waits on it.
fn lock(address: &Path) -> Result<File, Error> {
    let path = address.with_added_extension("lock");
    let io = io_error("lock", &path);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(&io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse {
            address: address.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

/// Makes sure that at most a dead socket is at `address`.
fn make_way(address: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(address) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => {
            let found = found.map_err(io_error("look at", address))?;
            if !found.file_type().is_socket() {
                return Err(Error::NotASocket {
                    address: address.to_owned(),
                });
            }
        }
    }
    match UnixStream::connect(address) {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        // Connected, or something that answers but does not let us in.
        _ => Err(Error::InUse {
            address: address.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &Path, group: Option<&str>) -> Result<Socket, Error> {
        Address::claim(path, group)?.listen()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn the_socket_is_the_owners_and_goes_with_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let address = dir.path().join("sub/a.sock");
        let socket = bind(&address, None).unwrap();
        assert_eq!(mode(&address), 0o600);
        UnixStream::connect(&address).unwrap();
        drop(socket);
        assert!(!address.exists());
    }

    #[test]
    fn a_claimed_address_is_nobody_elses_and_nobody_can_connect_yet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let address = Address::claim(&path, None).unwrap();
        assert!(!path.exists());
        let error = bind(&path, None).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        let _socket = address.listen().unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_group_may_use_it_when_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let address = dir.path().join("a.sock");
        let gid = fs::metadata(dir.path()).unwrap().gid();
        let _socket = bind(&address, Some(&gid.to_string())).unwrap();
        assert_eq!(mode(&address), 0o660);
        let other = dir.path().join("b.sock");
        let error = bind(&other, Some("no-such-group-here")).unwrap_err();
        assert!(error.to_string().contains("no-such-group-here"), "{error}");
        assert!(!other.exists());
    }

    #[test]
    fn a_live_socket_is_never_taken() {
        let dir = tempfile::tempdir().unwrap();
        let address = dir.path().join("a.sock");
        let socket = bind(&address, None).unwrap();
        let error = bind(&address, None).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        drop(socket);

        // Of a program that knows nothing of our lock.
        let _foreign = UnixListener::bind(&address).unwrap();
        let error = bind(&address, None).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        UnixStream::connect(&address).unwrap();
    }

    /// What other tests start has the sockets of this one open until its exec.
    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_anything_else_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let address = dir.path().join("a.sock");
        drop(UnixListener::bind(&address).unwrap());
        assert!(address.exists());
        let claimed = Address::claim_when_free(&address, None).await.unwrap();
        drop(claimed.listen().unwrap());

        fs::write(&address, "precious").unwrap();
        let claimed = Address::claim_when_free(&address, None).await;
        let error = claimed.unwrap_err();
        assert!(matches!(error, Error::NotASocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(&address).unwrap(), "precious");
    }
}
