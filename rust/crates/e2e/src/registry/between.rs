//! What stands between a client and a registry, and does not only pass on what a client sends.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;

/// How long a registry is given to keep what it has got.
const TICK: Duration = Duration::from_millis(200);

/// Cuts connections off in the middle of what a client sends.
#[derive(Debug)]
pub struct Cutting {
    address: SocketAddr,
    cuts: Arc<AtomicUsize>,
}

impl Cutting {
    /// Starts one before the server at `target`. So many times, it cuts a connection off as soon
    /// as it has forwarded more than `after` bytes on it.
    ///
    /// # Errors
    /// There is no port.
    pub fn start(target: SocketAddr, times: usize, after: usize) -> Result<Self> {
        let cuts = Arc::new(AtomicUsize::new(0));
        let counted = cuts.clone();
        let address = listen(move |client| {
            let mut sent = 0;
            forward(client, target, |server, bytes| {
                server.write_all(bytes)?;
                sent += bytes.len();
                let counts = |cuts| (cuts < times).then_some(cuts + 1);
                if sent <= after
                    || counted
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, counts)
                        .is_err()
                {
                    return Ok(true);
                }
                // The client hears nothing more, and the registry has the time to keep what it
                // has got.
                client.shutdown(Shutdown::Both)?;
                server.shutdown(Shutdown::Write)?;
                thread::sleep(TICK);
                server.shutdown(Shutdown::Both)?;
                Ok(false)
            })
        })?;
        Ok(Self { address, cuts })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has cut.
    #[must_use]
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }
}

/// Holds a request back for a while.
#[derive(Debug)]
pub struct Holding {
    address: SocketAddr,
    held: Arc<AtomicUsize>,
    forwarded: Arc<AtomicUsize>,
}

impl Holding {
    /// Starts one before the server at `target`. The first request that begins with `words` waits
    /// for that time.
    ///
    /// # Errors
    /// There is no port.
    pub fn start(target: SocketAddr, words: &'static str, time: Duration) -> Result<Self> {
        let held = Arc::new(AtomicUsize::new(0));
        let forwarded = Arc::new(AtomicUsize::new(0));
        let (holds, counts) = (held.clone(), forwarded.clone());
        let address = listen(move |client| {
            forward(client, target, |server, bytes| {
                // A client waits for an answer before its next request: none begins within others.
                if bytes.starts_with(words.as_bytes()) && holds.swap(1, Ordering::Relaxed) == 0 {
                    thread::sleep(time);
                }
                counts.fetch_add(bytes.len(), Ordering::Relaxed);
                server.write_all(bytes)?;
                Ok(true)
            })
        })?;
        Ok(Self {
            address,
            held,
            forwarded,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether there was such a request.
    #[must_use]
    pub fn has_held(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }

    /// How many bytes clients have sent.
    #[must_use]
    pub fn forwarded(&self) -> usize {
        self.forwarded.load(Ordering::Relaxed)
    }
}

/// Serves each connection by a thread of its own. They end with the test's process.
fn listen(
    serve: impl Fn(&TcpStream) -> io::Result<()> + Clone + Send + 'static,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(&client));
        }
    });
    Ok(address)
}

/// Hands over what a client sends piece by piece, until `pass` says that nothing more is wanted;
/// what the server answers goes back by itself.
fn forward(
    client: &TcpStream,
    target: SocketAddr,
    mut pass: impl FnMut(&mut TcpStream, &[u8]) -> io::Result<bool>,
) -> io::Result<()> {
    let mut server = TcpStream::connect(target)?;
    let (mut back, mut to_client) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut back, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let mut from_client = client.try_clone()?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from_client.read(&mut buffer)?;
        if read == 0 {
            return server.shutdown(Shutdown::Write);
        }
        if !pass(&mut server, &buffer[..read])? {
            return Ok(());
        }
    }
}
