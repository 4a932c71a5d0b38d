//! Registries that fail: by their answers, and by their connections.

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

/// How often a reader looks whether it is to end.
const TICK: Duration = Duration::from_millis(200);

/// Answers each request with bytes of the test's choice. Its threads end with the test's process.
#[derive(Debug)]
pub struct Answering {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Answering {
    /// Starts one. `answer` is given the number of the request and its first line; of `None` the
    /// client hears nothing.
    ///
    /// # Errors
    /// There is no port.
    pub fn start(
        answer: impl Fn(usize, &str) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let requests = Arc::new(AtomicUsize::new(0));
        let (answer, counted) = (Arc::new(answer), requests.clone());
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (answer, counted) = (answer.clone(), counted.clone());
                thread::spawn(move || serve(connection, &counted, &*answer));
            }
        });
        Ok(Self { address, requests })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests it has got.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

fn serve(
    mut connection: TcpStream,
    counted: &AtomicUsize,
    answer: &dyn Fn(usize, &str) -> Option<Vec<u8>>,
) -> io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if connection.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
        // A client that begins to speak TLS ends no line.
        if head[0] == 0x16 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head);
    let line = head.lines().next().unwrap_or_default();
    let number = counted.fetch_add(1, Ordering::Relaxed);
    match answer(number, line) {
        Some(answer) => {
            connection.write_all(&answer)?;
            connection.shutdown(Shutdown::Write)?;
        }
        None => thread::sleep(Duration::from_secs(60)),
    }
    // Closing with unread bytes would take the answer back.
    connection.set_read_timeout(Some(TICK))?;
    while connection.read(&mut [0; 4096])? > 0 {}
    Ok(())
}

/// An answer with a status, headers and a body.
#[must_use]
pub fn status(status: u16, headers: &[&str], body: &str) -> Option<Vec<u8>> {
    let mut text = format!("HTTP/1.1 {status} x\r\nConnection: close\r\n");
    for header in headers {
        text += header;
        text += "\r\n";
    }
    text += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
    Some(text.into_bytes())
}

/// Stands before a registry and cuts connections off in the middle of what a client sends.
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
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let cuts = Arc::new(AtomicUsize::new(0));
        let counted = cuts.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let cuts = counted.clone();
                thread::spawn(move || forward(&client, target, &cuts, times, after));
            }
        });
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

fn forward(
    client: &TcpStream,
    target: SocketAddr,
    cuts: &AtomicUsize,
    times: usize,
    after: usize,
) -> io::Result<()> {
    let server = TcpStream::connect(target)?;
    let (mut back, mut to_client) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut back, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let mut buffer = vec![0; 64 << 10];
    let mut sent = 0;
    loop {
        let read = from_client.read(&mut buffer)?;
        if read == 0 {
            return to_server.shutdown(Shutdown::Write);
        }
        to_server.write_all(&buffer[..read])?;
        sent += read;
        if sent > after
            && cuts
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |cuts| {
                    (cuts < times).then_some(cuts + 1)
                })
                .is_ok()
        {
            // The client hears nothing more, and the registry has the time to keep what it has got.
            client.shutdown(Shutdown::Both)?;
            to_server.shutdown(Shutdown::Write)?;
            thread::sleep(TICK);
            return server.shutdown(Shutdown::Both);
        }
    }
}
