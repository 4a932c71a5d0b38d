//! Calls with one message, on the wire: a flag, a length, and the message
//! (gRPC over HTTP2, "Length-Prefixed-Message").

use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use prost::Message;
use tonic::{Request, Response, Status, body::Body, server::Grpc};
use tonic_prost::ProstCodec;

/// What stands before a message.
const PREFIX: usize = 5;

/// Reads the one message of a call, of at most so many bytes, and gives the call back as it was.
/// `None` for what cannot be read: it is for its receiver to say so.
pub(super) async fn peek<M: Message + Default>(
    request: http::Request<Body>,
    limit: usize,
) -> Result<(http::Request<Body>, Option<M>), Status> {
    let (head, body) = request.into_parts();
    let collected = Limited::new(body, limit + PREFIX).collect().await;
    let bytes = collected.map_err(unread)?.to_bytes();
    let message = decode(bytes.clone());
    let body = Body::new(Full::new(bytes));
    Ok((http::Request::from_parts(head, body), message))
}

/// Why a request cannot be read: it is too large, or its sender has gone away.
fn unread(error: Box<dyn std::error::Error + Send + Sync>) -> Status {
    match error.is::<LengthLimitError>() {
        true => Status::resource_exhausted(format!("the request is too large: {error}")),
        false => Status::from_error(error),
    }
}

fn decode<M: Message + Default>(mut bytes: Bytes) -> Option<M> {
    let is_compressed = bytes.try_get_u8().ok()?;
    let length = bytes.try_get_u32().ok()?;
    let is_whole = usize::try_from(length).ok()? == bytes.len();
    match (is_compressed, is_whole) {
        (0, true) => M::decode(bytes).ok(),
        _ => None,
    }
}

/// Answers a call with one message, of at most so many bytes, by one message.
pub(super) async fn unary<M, R, F>(
    answer: impl Fn(Request<M>) -> F + Clone + Send,
    request: http::Request<Body>,
    limit: usize,
) -> http::Response<Body>
where
    M: Message + Default + Send + 'static,
    R: Message + Default + Send + 'static,
    F: Future<Output = Result<Response<R>, Status>> + Send,
{
    let codec = ProstCodec::<R, M>::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(limit);
    grpc.unary(tower::service_fn(answer), request).await
}

#[cfg(test)]
mod tests {
    use cri_api::v1::{ImageSpec, PullImageRequest};

    use super::*;

    #[test]
    fn a_message_is_read_whole_or_not_at_all() {
        let message = PullImageRequest {
            image: Some(ImageSpec {
                image: "a".to_owned(),
                ..ImageSpec::default()
            }),
        };
        let encoded = message.encode_to_vec();
        let framed = |flag: u8, length: usize, content: &[u8]| {
            let length = u32::try_from(length).unwrap().to_be_bytes();
            Bytes::from([&[flag], &length[..], content].concat())
        };
        let read = |bytes| decode::<PullImageRequest>(bytes);
        assert_eq!(read(framed(0, encoded.len(), &encoded)), Some(message));
        assert_eq!(read(framed(0, 0, &[])), Some(PullImageRequest::default()));
        assert_eq!(read(framed(1, encoded.len(), &encoded)), None);
        assert_eq!(read(framed(0, encoded.len() + 1, &encoded)), None);
        assert_eq!(read(framed(0, encoded.len() - 1, &encoded)), None);
        assert_eq!(read(Bytes::new()), None);
        assert_eq!(read(Bytes::from_static(&[0, 0, 0])), None);
        assert_eq!(read(framed(0, 3, &[0xff; 3])), None);
    }
}
