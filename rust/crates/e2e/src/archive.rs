//! Archives of images in the store, which `nix:0/nix/store/…` names.

use anyhow::Result;

use crate::{
    host::{Host, unique},
    node::{build, reference},
    store::{Object, Store},
};

/// Puts an archive into the store whose image has the closure of a fixture. No two are the same
/// image.
///
/// # Errors
/// There is no such fixture; what `nix2container build` says.
pub fn archive(host: &Host, fixture: &str, entrypoint: &[&str], flags: &[&str]) -> Result<Object> {
    let info = host.fixture(&format!("{fixture}-closure-info"))?;
    let label = format!("test={}", unique("label"));
    let flags = [flags, &["--label", &label]].concat();
    let file = build(host, &reference("built"), entrypoint, &info, &flags)?;
    Store::new(host)?.add(&file, &format!("nix-image-{fixture}.tar"))
}

/// The name of the image that an archive in the store has.
#[must_use]
pub fn image(archive: &Object) -> String {
    format!("nix:0{archive}")
}
