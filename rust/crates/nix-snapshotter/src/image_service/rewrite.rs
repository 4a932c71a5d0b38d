//! Answers that go on with a field of their messages changed.
//!
//! They are changed in their bytes, so that nothing of them is lost that our `.proto` file does not
//! know.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::stream::unfold;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};
use tonic::{Status, body::Body};

use super::forward::MAX_MESSAGE;

/// A flag and a length before each message (gRPC over HTTP2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// An answer, of one message or of many, each of which is what `change` makes of it; `None` leaves
/// it as it is. A message goes on as soon as it has come whole.
pub(super) fn messages<C>(answer: http::Response<Body>, change: C) -> http::Response<Body>
where
    C: FnMut(&Bytes) -> Option<Vec<u8>> + Send + 'static,
{
    // Of a call that has failed, all is in the headers, and has to end with them.
    if answer.body().is_end_stream() {
        return answer;
    }
    let (head, body) = answer.into_parts();
    let rewriting = Rewriting {
        body,
        received: BytesMut::new(),
        is_lost: false,
        has_ended: false,
        trailers: None,
        change,
    };
    let frames = unfold(rewriting, |mut rewriting| async {
        let frame = rewriting.next().await?;
        Some((frame, rewriting))
    });
    http::Response::from_parts(head, Body::new(StreamBody::new(frames)))
}

struct Rewriting<C> {
    body: Body,
    /// What has come of the next message.
    received: BytesMut,
    /// Where the next message begins is not known any more.
    is_lost: bool,
    /// No more will come.
    has_ended: bool,
    trailers: Option<Frame<Bytes>>,
    change: C,
}

impl<C: FnMut(&Bytes) -> Option<Vec<u8>>> Rewriting<C> {
    async fn next(&mut self) -> Option<Result<Frame<Bytes>, Status>> {
        loop {
            if let Some(message) = self.take_message() {
                return Some(Ok(Frame::data(message)));
            }
            if self.has_ended || self.is_lost {
                // Half a message: it is for whoever reads it to say so.
                if !self.received.is_empty() {
                    return Some(Ok(Frame::data(self.received.split().freeze())));
                }
                if self.has_ended {
                    return self.trailers.take().map(Ok);
                }
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.received.extend_from_slice(&data),
                    Err(trailers) => {
                        self.trailers = Some(trailers);
                        self.has_ended = true;
                    }
                },
                Some(Err(error)) => return Some(Err(error)),
                None => self.has_ended = true,
            }
        }
    }

    /// Takes the next message with its prefix, if it has come whole.
    fn take_message(&mut self) -> Option<Bytes> {
        let mut prefix = self.received.get(..PREFIX)?;
        let is_compressed = prefix.get_u8() != 0;
        let length = usize::try_from(prefix.get_u32()).ok()?;
        self.is_lost |= length > MAX_MESSAGE;
        if self.is_lost || self.received.len() < PREFIX + length {
            return None;
        }
        let framed = self.received.split_to(PREFIX + length).freeze();
        let changed = match is_compressed {
            true => None,
            false => (self.change)(&framed.slice(PREFIX..)),
        };
        Some(
            changed
                .and_then(|message| frame(&message))
                .unwrap_or(framed),
        )
    }
}

fn frame(message: &[u8]) -> Option<Bytes> {
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).ok()?);
    framed.extend_from_slice(message);
    Some(framed.freeze())
}

/// A message in which each message of this field has more at its end, where `more` says so. Of a
/// field that stands there twice the second counts. `None` for what cannot be read.
pub(super) fn append(
    message: &Bytes,
    field: u32,
    mut more: impl FnMut(&Bytes) -> Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    let mut rest = message.clone();
    let mut changed = Vec::with_capacity(message.len());
    while rest.has_remaining() {
        let begin = rest.clone();
        let (found, wire_type) = decode_key(&mut rest).ok()?;
        let mut added = None;
        if (found, wire_type) == (field, WireType::LengthDelimited) {
            let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
            if length > rest.len() {
                return None;
            }
            let inner = rest.split_to(length);
            added = more(&inner).map(|added| (inner, added));
        } else {
            skip_field(wire_type, found, &mut rest, DecodeContext::default()).ok()?;
        }
        match added {
            Some((inner, added)) => {
                encode_key(field, WireType::LengthDelimited, &mut changed);
                encode_varint((inner.len() + added.len()) as u64, &mut changed);
                changed.extend_from_slice(&inner);
                changed.extend(added);
            }
            None => changed.extend_from_slice(&begin[..begin.len() - rest.len()]),
        }
    }
    Some(changed)
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    /// Field 1 with a content.
    fn field(content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        [&[0x0a, length], content].concat()
    }

    #[test]
    fn what_is_not_known_stays() {
        // A later field before, between and behind, and one within.
        let unknown = [0x7a, 3, b'x', b'y', b'z'];
        let inner = [&[0x10, 7][..], &unknown].concat();
        let parts = [
            &unknown[..],
            &field(&inner),
            &unknown,
            &field(b""),
            &unknown,
        ];
        let mut seen = Vec::new();
        let changed = append(&parts.concat().into(), 1, |inner| {
            seen.push(inner.to_vec());
            (!inner.is_empty()).then(|| vec![0x10, 9])
        });
        assert_eq!(seen, [&inner[..], &[]]);
        let longer = field(&[&inner[..], &[0x10, 9]].concat());
        let parts = [&unknown[..], &longer, &unknown, &field(b""), &unknown];
        assert_eq!(changed, Some(parts.concat()));
    }

    #[test]
    fn what_cannot_be_read_is_left_alone() {
        for message in [&[0x0a, 9, 1][..], &[0xff; 20], &[0x12, 3, 0]] {
            let changed = append(&message.to_vec().into(), 1, |_| Some(vec![0x10, 9]));
            assert_eq!(changed, None, "{message:?}");
        }
        assert_eq!(append(&Bytes::new(), 1, |_| None), Some(vec![]));
    }

    fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[flag], &length[..], message].concat()
    }

    /// What comes of an answer that arrives in pieces of so many bytes, with its trailers.
    async fn rewritten(answer: &[u8], piece: usize) -> (Vec<u8>, Option<http::HeaderMap>) {
        let pieces: Vec<_> = answer
            .chunks(piece)
            .map(|piece| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let body = StreamBody::new(tokio_stream::iter(pieces)).with_trailers(async {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            Some(Ok(trailers))
        });
        let answer = http::Response::new(Body::new(body));
        let more = |message: &Bytes| (&message[..] != b"same").then(|| b"longer".to_vec());
        let collected = messages(answer, more).into_body().collect().await.unwrap();
        let trailers = collected.trailers().cloned();
        (collected.to_bytes().to_vec(), trailers)
    }

    #[tokio::test]
    async fn each_message_of_an_answer_is_changed_however_it_arrives() {
        let parts = [framed(0, b"one"), framed(0, b"same"), framed(0, b"")];
        let expected = [
            framed(0, b"longer"),
            framed(0, b"same"),
            framed(0, b"longer"),
        ];
        for piece in [1, 2, 7, 100] {
            let (bytes, trailers) = rewritten(&parts.concat(), piece).await;
            assert_eq!(bytes, expected.concat(), "{piece}");
            assert_eq!(trailers.unwrap()["grpc-status"], "0");
        }
        // Compressed, cut off, and of a length that is none.
        for odd in [
            framed(1, b"one"),
            framed(0, b"one")[..6].to_vec(),
            vec![0xff; 9],
        ] {
            for piece in [1, 100] {
                let (bytes, trailers) = rewritten(&odd, piece).await;
                assert_eq!(bytes, odd, "{piece}");
                assert!(trailers.is_some());
            }
        }
    }

    #[tokio::test]
    async fn an_answer_without_a_message_is_what_it_was() {
        let answer = http::Response::new(Body::new(Full::new(Bytes::new())));
        let collected = messages(answer, |_| Some(vec![1])).into_body().collect();
        assert!(collected.await.unwrap().to_bytes().is_empty());
    }
}
