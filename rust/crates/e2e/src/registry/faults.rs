//! Registries that fail by their answers.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
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
    heads: Heads,
}

/// The lines of each request, from the first to its headers' last.
type Heads = Arc<Mutex<Vec<String>>>;

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
        let heads = Heads::default();
        let (answer, kept) = (Arc::new(answer), heads.clone());
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (answer, heads) = (answer.clone(), kept.clone());
                thread::spawn(move || serve(connection, &heads, &*answer));
            }
        });
        Ok(Self { address, heads })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests it has got.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.heads().len()
    }

    /// What they say before their bodies.
    #[must_use]
    pub fn heads(&self) -> Vec<String> {
        let heads = self.heads.lock();
        heads.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(
    mut connection: TcpStream,
    heads: &Mutex<Vec<String>>,
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
    let number = {
        let mut heads = heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.push(head.clone().into_owned());
        heads.len() - 1
    };
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
