//! Reading of manifests, indexes and configs.

use anyhow::anyhow;
use nix_image::{
    Descriptor, Digest, Reference,
    archive::MAX_DOCUMENT_BYTES,
    media_type::{DOCKER_INDEX, DOCKER_MANIFEST, INDEX, MANIFEST},
};
use reqwest::{
    Method, RequestBuilder, StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE},
};
use serde::Deserialize;

use super::{
    CONTENT_DIGEST, Registry, accept,
    answer::{self, Failure},
    header,
};

/// What may stand behind a reference.
const ROOTS: [&str; 4] = [INDEX, MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];

/// A document as it came.
struct Received {
    body: Vec<u8>,
    media_type: Option<String>,
    digest: Option<String>,
}

impl Registry {
    /// The manifest or index that a reference names, with its text. `None` if the registry does
    /// not have it.
    pub(crate) async fn resolve(
        &self,
        reference: &Reference,
    ) -> anyhow::Result<Option<(Descriptor, Vec<u8>)>> {
        let what = format!("read the manifest {}", reference.tag_or_digest());
        let url = self.url(&format!("manifests/{}", reference.tag_or_digest()))?;
        let found = self
            .retried(&what, async || {
                match self.receive(&url, MAX_DOCUMENT_BYTES).await? {
                    Some(received) => identify(received, reference.digest()).map(Some),
                    None => Ok(None),
                }
            })
            .await?;
        Ok(found)
    }

    /// Reads a manifest, an index or a config, and checks that it is what its descriptor says.
    /// `None` if the registry does not have it.
    pub(crate) async fn read_document(
        &self,
        document: &Descriptor,
    ) -> anyhow::Result<Option<Vec<u8>>> {
        let what = format!("read {}", document.digest);
        let kind = match document.is_manifest() || document.is_index() {
            true => "manifests",
            false => "blobs",
        };
        let url = self.url(&format!("{kind}/{}", document.digest))?;
        self.retried(&what, async || {
            if document.size > MAX_DOCUMENT_BYTES {
                return Err(too_large());
            }
            let Some(received) = self.receive(&url, document.size).await? else {
                return Ok(None);
            };
            match Digest::of(&received.body) == document.digest {
                true => Ok(Some(received.body)),
                false => Err(damaged()),
            }
        })
        .await
    }

    async fn receive(&self, url: &Url, limit: u64) -> Result<Option<Received>, Failure> {
        let request = |request: RequestBuilder| request.header(ACCEPT, ROOTS.join(", "));
        let response = self.once(Method::GET, url, request).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let response = accept(response, &[StatusCode::OK], self.timeout).await?;
        let media_type = header(&response, CONTENT_TYPE.as_str());
        let media_type = media_type.and_then(|value| value.split(';').next());
        let media_type = media_type.map(|value| value.trim().to_owned());
        let digest = header(&response, CONTENT_DIGEST).map(str::to_owned);
        let body = answer::body(response, limit, self.timeout).await?;
        match body.len() as u64 > limit {
            true => Err(too_large()),
            false => Ok(Some(Received {
                body,
                media_type,
                digest,
            })),
        }
    }
}

/// The descriptor of what a registry gave for a reference: of the digest that was asked for, or
/// of the one that the registry gives itself.
fn identify(received: Received, asked: Option<Digest>) -> Result<(Descriptor, Vec<u8>), Failure> {
    let Received {
        body,
        media_type,
        digest,
    } = received;
    let expected = asked.or_else(|| digest?.parse().ok());
    if expected.is_some_and(|expected| expected != Digest::of(&body)) {
        return Err(damaged());
    }
    // Some servers know files only, and call all of them application/json.
    let is_root = |media_type: &String| ROOTS.contains(&media_type.as_str());
    let root = media_type
        .filter(is_root)
        .or_else(|| declared(&body).filter(is_root));
    match root {
        Some(root) => Ok((Descriptor::of(root, &body), body)),
        None => Err(Failure::Fatal(anyhow!(
            "it is no manifest of OCI or of Docker's image format 2: push the image again with a newer program"
        ))),
    }
}

/// The media type that a document gives itself.
fn declared(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Document {
        media_type: Option<String>,
    }
    serde_json::from_slice::<Document>(body).ok()?.media_type
}

fn damaged() -> Failure {
    Failure::Fatal(anyhow!(
        "what the registry gives is something else, by its digest: push the image again"
    ))
}

fn too_large() -> Failure {
    Failure::Fatal(anyhow!(
        "it is larger than a document of an image may be ({MAX_DOCUMENT_BYTES} bytes), or than was said: push the image again"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(body: &str, media_type: Option<&str>, digest: Option<&str>) -> Received {
        Received {
            body: body.into(),
            media_type: media_type.map(str::to_owned),
            digest: digest.map(str::to_owned),
        }
    }

    #[test]
    fn a_document_is_what_its_header_says_or_else_what_it_says_itself() {
        let oci = format!(r#"{{"mediaType":"{INDEX}"}}"#);
        for (body, media_type, expected) in [
            ("{}", Some(MANIFEST), Some(MANIFEST)),
            (&*oci, None, Some(INDEX)),
            (&*oci, Some("application/json"), Some(INDEX)),
            ("{}", Some("application/json"), None),
            ("<html>", Some("text/html"), None),
        ] {
            let found = identify(received(body, media_type, None), None);
            assert_eq!(
                found.ok().map(|(root, _)| root.media_type).as_deref(),
                expected,
                "{body} {media_type:?}"
            );
        }
    }

    #[test]
    fn a_document_with_another_digest_is_refused() {
        let (own, other) = (Digest::of(b"{}"), Digest::of(b"{ }"));
        let is_taken = |asked, said: Option<Digest>| {
            let said = said.map(|digest| digest.to_string());
            identify(received("{}", Some(MANIFEST), said.as_deref()), asked).is_ok()
        };
        assert!(is_taken(None, None));
        assert!(is_taken(Some(own), None));
        assert!(is_taken(None, Some(own)));
        assert!(!is_taken(Some(other), Some(own)));
        assert!(!is_taken(None, Some(other)));
        // What the registry says counts only where nothing else is known.
        assert!(is_taken(Some(own), Some(other)));
    }
}
