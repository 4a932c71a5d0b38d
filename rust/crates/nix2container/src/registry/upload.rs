//! The upload of a blob out of an archive.
//!
//! A small blob goes in one request. Any other is streamed; when its connection breaks, the
//! registry is asked how much it has, and the upload goes on from there. A registry that cannot
//! tell gets it from the beginning.

use std::io::{self, Read, Seek};

use anyhow::anyhow;
use nix_image::{Descriptor, archive::Archive};
use reqwest::{
    Body, Method, RequestBuilder, Response, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE},
};
use tokio::{sync::mpsc, time};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Registry, accept,
    answer::{self, Failure},
    header,
    retry::Attempts,
    transport::IN_PLAIN_TEXT,
};
use image_loader::Task;

/// Bytes of a blob that are read, hashed and sent at a time.
const CHUNK: usize = 256 << 10;

/// Pieces that wait to be sent.
const WAITING_CHUNKS: usize = 4;

/// Largest blob that is sent in one request out of memory.
const SMALL: u64 = 256 << 10;

/// How many times longer than for any other answer a registry is waited for that has got all of a
/// blob: it may copy it to where it stays.
const PATIENCE: u32 = 10;

const OCTETS: &str = "application/octet-stream";

/// How a blob came to be in the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// It was transferred.
    Transferred,
    /// The registry took it from another repository.
    Mounted,
}

/// An upload that has begun.
#[derive(Debug)]
struct Session {
    /// Where the next piece goes.
    url: Url,
    /// How many bytes the registry has.
    offset: u64,
}

/// How far an upload is.
#[derive(Debug)]
enum State {
    /// Nothing has begun, or not any more.
    New,
    /// It broke: how much the registry has is to be asked at this address.
    Broken(Url),
    Going(Session),
    Done(Stored),
}

impl Registry {
    /// Brings a blob into the repository. `from` is another repository of this registry that is
    /// said to have it.
    pub(crate) async fn upload<R: Read + Seek>(
        &self,
        archive: &mut Archive<R>,
        blob: &Descriptor,
        from: Option<&str>,
        task: &dyn Task,
    ) -> anyhow::Result<Stored> {
        let what = format!("store {}", blob.digest);
        let mut attempts = Attempts::default();
        let mut state = State::New;
        let mut is_first = true;
        loop {
            let (address, offset) = match &state {
                State::Done(stored) => return Ok(*stored),
                State::New => (None, 0),
                State::Broken(url) => (Some(url.clone()), 0),
                State::Going(session) => (Some(session.url.clone()), session.offset),
            };
            let step = match state {
                State::New if is_first => self.begin(blob, from).await,
                // It may have been the last answer only that was lost.
                State::New if self.has_blob(blob.digest).await? => {
                    Ok(State::Done(Stored::Transferred))
                }
                State::New => self.begin(blob, None).await,
                State::Broken(url) => self.ask(url, blob).await,
                State::Going(session) => self.proceed(archive, blob, session, task).await,
                done @ State::Done(_) => Ok(done),
            };
            match step {
                Ok(next) => {
                    if let State::Going(session) = &next {
                        attempts.reached(session.offset);
                    }
                    state = next;
                    continue;
                }
                // The registry lost an upload that went on: from the beginning, as after any failure.
                Err(Failure::Answer(answer))
                    if !is_first && offset > 0 && matches!(answer.status, 400 | 404 | 416) =>
                {
                    let lost = Failure::Broken {
                        reason: format!("it has lost the upload ({})", answer.status),
                        connected: true,
                    };
                    self.pause(&mut attempts, lost, &what).await?;
                    state = State::New;
                }
                Err(failure) => {
                    if let Err(error) = self.pause(&mut attempts, failure, &what).await {
                        self.cancel(address).await;
                        return Err(error);
                    }
                    state = address.map_or(State::New, State::Broken);
                }
            }
            is_first = false;
        }
    }

    async fn begin(&self, blob: &Descriptor, from: Option<&str>) -> Result<State, Failure> {
        let mut url = self.url("blobs/uploads/")?;
        if let Some(from) = from {
            url.query_pairs_mut()
                .append_pair("mount", &blob.digest.to_string())
                .append_pair("from", from);
        }
        let request = |request: RequestBuilder| request.header(CONTENT_LENGTH, 0);
        let response = self.once(Method::POST, &url, request).await?;
        match response.status() {
            StatusCode::CREATED if from.is_some() => Ok(State::Done(Stored::Mounted)),
            StatusCode::ACCEPTED => Ok(State::Going(Session {
                url: self.next_url(&response)?,
                offset: 0,
            })),
            // Some refuse to mount what they do not have, or what the user may not read.
            status if from.is_some() && status.is_client_error() => {
                Box::pin(self.begin(blob, None)).await
            }
            _ => Err(unexpected(response, self.timeout).await),
        }
    }

    /// Asks how much of an upload has arrived.
    async fn ask(&self, url: Url, blob: &Descriptor) -> Result<State, Failure> {
        let response = self.once(Method::GET, &url, |request| request).await?;
        let status = response.status();
        if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
            return Ok(State::New);
        }
        let response = accept(
            response,
            &[StatusCode::NO_CONTENT, StatusCode::ACCEPTED],
            self.timeout,
        )
        .await?;
        let offset = header(&response, RANGE.as_str()).and_then(received);
        Ok(match offset {
            Some(offset) if offset <= blob.size => State::Going(Session {
                url: self.next_url(&response).unwrap_or(url),
                offset,
            }),
            _ => State::New,
        })
    }

    /// Sends what is left, and has the registry check the digest.
    async fn proceed<R: Read + Seek>(
        &self,
        archive: &mut Archive<R>,
        blob: &Descriptor,
        session: Session,
        task: &dyn Task,
    ) -> Result<State, Failure> {
        task.restart();
        task.advance(session.offset);
        if blob.size <= SMALL && session.offset == 0 {
            let content = archive.read_blob(blob).map_err(fatal)?;
            self.commit(blob, &session.url, content).await?;
            task.advance(blob.size);
            return Ok(State::Done(Stored::Transferred));
        }
        if session.offset == blob.size {
            self.commit(blob, &session.url, Vec::new()).await?;
            return Ok(State::Done(Stored::Transferred));
        }
        let response = self.stream(archive, blob, &session, task).await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.log_in(&response).await? {
            return Ok(State::Broken(session.url));
        }
        if response.status() != StatusCode::ACCEPTED {
            return Err(unexpected(response, self.timeout).await);
        }
        let offset = match header(&response, RANGE.as_str()).and_then(received) {
            Some(offset) if offset > blob.size || offset <= session.offset => {
                return Err(Failure::Broken {
                    reason: format!("it has {offset} bytes after {} were sent", blob.size),
                    connected: true,
                });
            }
            Some(offset) => offset,
            None => blob.size,
        };
        Ok(State::Going(Session {
            url: self.next_url(&response)?,
            offset,
        }))
    }

    /// Sends what is left of a blob as one request.
    async fn stream<R: Read + Seek>(
        &self,
        archive: &mut Archive<R>,
        blob: &Descriptor,
        session: &Session,
        task: &dyn Task,
    ) -> Result<Response, Failure> {
        let (sender, receiver) = mpsc::channel(WAITING_CHUNKS);
        let mut request = self
            .authorized(Method::PATCH, &session.url)
            .header(CONTENT_TYPE, OCTETS)
            .header(CONTENT_LENGTH, blob.size - session.offset)
            .body(Body::wrap_stream(ReceiverStream::new(receiver)));
        // Of a whole blob some registries take the range for a mistake.
        if session.offset > 0 {
            let range = format!("{}-{}", session.offset, blob.size - 1);
            request = request.header(CONTENT_RANGE, range);
        }
        let answer = request.send();
        let feed = self.feed(archive, blob, session.offset, sender, task);
        tokio::pin!(answer, feed);
        tokio::select! {
            // An answer before the end is a refusal, and the rest needs not be sent.
            answer = &mut answer => return Ok(answer?),
            fed = &mut feed => fed?,
        }
        answer::within(self.timeout * PATIENCE, answer).await
    }

    /// Reads the blob and hands it over piece by piece. Ends early when nobody takes it any more.
    async fn feed<R: Read + Seek>(
        &self,
        archive: &mut Archive<R>,
        blob: &Descriptor,
        offset: u64,
        sender: mpsc::Sender<io::Result<Vec<u8>>>,
        task: &dyn Task,
    ) -> Result<(), Failure> {
        let mut content = archive.blob(blob).map_err(fatal)?;
        // What the registry has is read again: the digest is of the whole.
        let mut skip = offset;
        loop {
            let wanted = match usize::try_from(skip) {
                Ok(skip) if skip > 0 => skip.min(CHUNK),
                Ok(_) => CHUNK,
                Err(_) => CHUNK,
            };
            let mut chunk = vec![0; wanted];
            let read = content.read(&mut chunk).map_err(fatal)?;
            if read == 0 {
                return Ok(());
            }
            if skip > 0 {
                skip -= read as u64;
                continue;
            }
            chunk.truncate(read);
            match time::timeout(self.timeout, sender.send(Ok(chunk))).await {
                Ok(Ok(())) => task.advance(read as u64),
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(answer::silence(self.timeout)),
            }
        }
    }

    async fn commit(&self, blob: &Descriptor, url: &Url, content: Vec<u8>) -> Result<(), Failure> {
        let mut url = url.clone();
        url.query_pairs_mut()
            .append_pair("digest", &blob.digest.to_string());
        let send = || {
            self.authorized(Method::PUT, &url)
                .header(CONTENT_TYPE, OCTETS)
                .header(CONTENT_LENGTH, content.len())
                .body(content.clone())
                .send()
        };
        let patience = self.timeout * PATIENCE;
        let mut response = answer::within(patience, send()).await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.log_in(&response).await? {
            response = answer::within(patience, send()).await?;
        }
        match response.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(()),
            _ => Err(unexpected(response, self.timeout).await),
        }
    }

    /// Tells the registry that nothing will follow. It finds out by itself otherwise, much later.
    async fn cancel(&self, address: Option<Url>) {
        if let Some(url) = address {
            let _ =
                answer::within(self.timeout, self.authorized(Method::DELETE, &url).send()).await;
        }
    }

    fn next_url(&self, response: &Response) -> Result<Url, Failure> {
        let location = header(response, LOCATION.as_str()).unwrap_or_default();
        let url = next_url(&self.base, response.url(), location).ok_or_else(|| {
            anyhow!(
                "the registry does not say where to upload to: see whether {} is a registry",
                self.domain
            )
        })?;
        if self.base.scheme() == "https" && url.scheme() != "https" {
            let target = url.host_str().unwrap_or_default();
            return Err(anyhow!("it wants the upload at {target} {IN_PLAIN_TEXT}").into());
        }
        Ok(url)
    }
}

async fn unexpected(response: Response, timeout: time::Duration) -> Failure {
    Failure::Answer(answer::Answer::read(response, timeout).await)
}

fn fatal(error: nix_image::Error) -> Failure {
    Failure::Fatal(error.into())
}

/// Where the next piece of an upload goes. Registries behind a proxy that ends TLS may not know of
/// it: on the same host nothing goes in plain text that came encrypted.
fn next_url(base: &Url, asked: &Url, location: &str) -> Option<Url> {
    if location.is_empty() {
        return None;
    }
    let mut url = asked.join(location).ok()?;
    if base.scheme() == "https" && url.scheme() == "http" && url.host_str() == base.host_str() {
        url.set_scheme("https").ok()?;
        url.set_port(base.port()).ok()?;
    }
    matches!(url.scheme(), "http" | "https").then_some(url)
}

/// How many bytes a registry has that says `0-LAST`. Of nothing some say `0-0`, which is one byte;
/// nobody uploads a single byte.
fn received(range: &str) -> Option<u64> {
    let range = range.trim();
    let range = range
        .strip_prefix("bytes")
        .map_or(range, |rest| rest.trim_start_matches(['=', ' ']));
    match range.split_once('-')? {
        ("0", "0") => Some(0),
        ("0", last) => last.parse::<u64>().ok()?.checked_add(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_say_how_much_has_arrived() {
        for (range, bytes) in [
            ("0-0", Some(0)),
            ("0-1", Some(2)),
            ("0-1048575", Some(1 << 20)),
            ("bytes=0-9", Some(10)),
            ("bytes 0-9", Some(10)),
            (" 0-9 ", Some(10)),
            ("5-9", None),
            ("0--1", None),
            ("0-18446744073709551615", None),
            ("0-99999999999999999999", None),
            ("9", None),
            ("", None),
        ] {
            assert_eq!(received(range), bytes, "{range:?}");
        }
    }

    #[test]
    fn locations_may_be_of_any_form_and_stay_encrypted() {
        let base = Url::parse("https://r.io:8443/v2/").unwrap();
        let asked = base.join("a/blobs/uploads/").unwrap();
        let next = |location| next_url(&base, &asked, location).map(|url| url.to_string());
        for (location, expected) in [
            (
                "/v2/a/blobs/uploads/1?_state=x%3D",
                Some("https://r.io:8443/v2/a/blobs/uploads/1?_state=x%3D"),
            ),
            ("1", Some("https://r.io:8443/v2/a/blobs/uploads/1")),
            ("https://r.io:8443/u/1", Some("https://r.io:8443/u/1")),
            ("http://r.io/u/1", Some("https://r.io:8443/u/1")),
            ("https://store.io/u", Some("https://store.io/u")),
            ("ftp://r.io/u", None),
            ("http://", None),
            ("", None),
        ] {
            assert_eq!(next(location).as_deref(), expected, "{location}");
        }
        let plain = Url::parse("http://r.io/v2/").unwrap();
        let url = next_url(&plain, &plain, "http://r.io:5000/u").unwrap();
        assert_eq!(url.as_str(), "http://r.io:5000/u");
    }
}
