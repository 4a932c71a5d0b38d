//! Whether the store paths of an image can be had: the registry has their names alone.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream};
use nix_image::annotations;
use nix_store::{Closure, StoreDir, StorePath};
use reqwest::{Client, StatusCode, Url};

use super::plan::Plan;
use crate::registry::RegistryArgs;

/// Requests to binary caches at one time.
const CONCURRENCY: usize = 16;

/// How many store paths a warning lists.
const LISTED: usize = 5;

/// The address of a binary cache, as a flag gives it.
pub(super) fn parse_url(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
        _ => Err("it is not an address that begins with http:// or https://".to_owned()),
    }
}

/// Warns of the store paths that none of the caches has.
pub(super) async fn warn(
    caches: &[Url],
    plan: &Plan,
    registry: &RegistryArgs,
) -> anyhow::Result<()> {
    let paths = closure(plan)?;
    let http = registry.client(caches)?;
    let asked = stream::iter(&paths).map(|path| {
        let http = &http;
        async move {
            for cache in caches {
                if has(http, cache, path, registry).await? {
                    return Ok(None);
                }
            }
            anyhow::Ok(Some(path))
        }
    });
    let mut answers = asked.buffered(CONCURRENCY);
    let mut missing = Vec::new();
    while let Some(answer) = answers.next().await {
        missing.extend(answer?);
    }
    if let Some(warning) = warning(&missing, paths.len()) {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// The store paths of all layers. A closure-info names more of them if it is here.
fn closure(plan: &Plan) -> anyhow::Result<BTreeSet<StorePath>> {
    let mut paths = BTreeSet::new();
    for layer in plan.layers() {
        for (label, value) in &layer.annotations {
            if !annotations::names_store_paths(label) {
                continue;
            }
            // The store of whoever pulls the image may be another than the one here.
            let dir = value
                .rsplit_once('/')
                .map_or(value.as_str(), |(dir, _)| dir);
            let store_dir = StoreDir::new(dir)?;
            let path = store_dir
                .parse(value)
                .with_context(|| format!("the annotation {label} of {}", layer.digest))?;
            if label == annotations::NIX_CLOSURE {
                match Closure::read_closure_info(&store_dir, &path) {
                    Ok(closure) => paths.extend(closure),
                    Err(error) => tracing::warn!(
                        "only {path} itself is looked for in the binary caches, not the closure that it lists: {error}"
                    ),
                }
            }
            paths.insert(path);
        }
    }
    Ok(paths)
}

async fn has(
    http: &Client,
    cache: &Url,
    path: &StorePath,
    registry: &RegistryArgs,
) -> anyhow::Result<bool> {
    let url = narinfo(cache, path);
    let request = http.get(url.clone()).timeout(registry.timeout()).send();
    let response = request
        .await
        .map_err(reqwest::Error::without_url)
        .with_context(|| {
            format!("cannot ask the binary cache {cache}: correct its address, or leave out --check-cache")
        })?;
    match response.status() {
        StatusCode::OK => Ok(true),
        // Caches in S3 whose files cannot be listed say this of what they do not have.
        StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => Ok(false),
        status => bail!(
            "cannot ask the binary cache {cache}: it answers {url} with status {}: correct its address, or leave out --check-cache",
            status.as_u16()
        ),
    }
}

fn narinfo(cache: &Url, path: &StorePath) -> Url {
    let base = path.base_name();
    let hash = base.split_once('-').map_or(base, |(hash, _)| hash);
    let mut url = cache.clone();
    // Behind the address come parameters of Nix, such as its priority.
    url.set_query(None);
    let below = format!("{}/{hash}.narinfo", url.path().trim_end_matches('/'));
    url.set_path(&below);
    url
}

fn warning(missing: &[&StorePath], all: usize) -> Option<String> {
    if missing.is_empty() {
        return None;
    }
    let listed: Vec<_> = missing
        .iter()
        .take(LISTED)
        .map(|path| path.as_str())
        .collect();
    let more = match missing.len() - listed.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "no binary cache has {} of the {all} store paths of the image, and who pulls it cannot get them: {}{more}: `nix copy --to CACHE` brings them there",
        missing.len(),
        listed.join(" ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narinfo_is_asked_for_by_the_hash() {
        let path = StoreDir::default()
            .parse("/nix/store/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-a-b")
            .unwrap();
        for (cache, url) in [
            (
                "https://c.io",
                "https://c.io/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr.narinfo",
            ),
            (
                "http://c.io/x/?priority=3",
                "http://c.io/x/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr.narinfo",
            ),
        ] {
            assert_eq!(narinfo(&parse_url(cache).unwrap(), &path).as_str(), url);
        }
        for text in ["", "c.io", "file:///x", "s3://x"] {
            assert!(parse_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_warning_lists_the_first_and_counts_all() {
        let paths: Vec<_> = (0..7)
            .map(|n| {
                let text = format!("/nix/store/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-{n}");
                StoreDir::default().parse(&text).unwrap()
            })
            .collect();
        let missing: Vec<_> = paths.iter().collect();
        let text = warning(&missing, 9).unwrap();
        assert!(text.contains("7 of the 9"), "{text}");
        assert!(text.contains("xr-4 and 2 more"), "{text}");
        assert!(!text.contains("xr-5"), "{text}");
        assert!(!warning(&missing[..5], 9).unwrap().contains("more"));
        assert_eq!(warning(&[], 9), None);
    }
}
