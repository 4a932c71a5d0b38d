//! What Nix knows of store paths: which are valid, and their sizes.

use std::collections::{HashMap, HashSet};

use tokio_util::sync::CancellationToken;

use super::{Realiser, RealiserOptions, describe, name, run};
use crate::{
    Error, StorePath,
    nix_cli::{self, NIX_STORE},
};

impl Realiser {
    /// The NAR size of these paths, all together, in bytes; 0 with an external builder, which
    /// cannot be asked.
    ///
    /// # Errors
    /// Those of [`Realiser::nar_sizes`].
    pub async fn nar_size(
        &self,
        paths: &[StorePath],
        cancel: &CancellationToken,
    ) -> Result<u64, Error> {
        if self.0.external_builder.is_some() {
            return Ok(0);
        }
        let sizes = self.nar_sizes(paths, cancel).await?;
        Ok(sizes.into_values().fold(0, u64::saturating_add))
    }

    /// The NAR size of each of these paths in bytes, as Nix says it. A path that is not valid has
    /// none, whether it is in the store or not, and is left out. An external builder is not asked.
    ///
    /// # Errors
    /// What Nix says; [`Error::Sizes`], and [`Error::Cancelled`].
    pub async fn nar_sizes(
        &self,
        paths: &[StorePath],
        cancel: &CancellationToken,
    ) -> Result<HashMap<StorePath, u64>, Error> {
        let mut sizes = HashMap::with_capacity(paths.len());
        for paths in nix_cli::calls(paths, 1) {
            match self.sizes_of_valid(paths, cancel).await {
                // One path that is not valid is enough for that.
                Err(error @ Error::Failed { .. }) => {
                    let valid = valid(&self.0, paths, cancel).await?;
                    if valid.len() == paths.len() {
                        return Err(error);
                    }
                    if !valid.is_empty() {
                        sizes.extend(self.sizes_of_valid(&valid, cancel).await?);
                    }
                }
                told => sizes.extend(told?),
            }
        }
        Ok(sizes)
    }

    /// The sizes of valid paths, few enough for a call.
    async fn sizes_of_valid(
        &self,
        paths: &[StorePath],
        cancel: &CancellationToken,
    ) -> Result<impl Iterator<Item = (StorePath, u64)>, Error> {
        let output = run(&self.0, &mut nix_cli::sizes(paths), paths, cancel).await?;
        let answer = String::from_utf8_lossy(&output.stdout);
        let sizes = nix_cli::parse_sizes(&answer).filter(|sizes| sizes.len() == paths.len());
        let sizes = sizes.ok_or_else(|| Error::Sizes {
            program: name(NIX_STORE.as_ref()),
            subject: describe(paths),
        })?;
        Ok(paths.iter().cloned().zip(sizes))
    }
}

/// Those of these paths, few enough for a call, that are valid.
pub(super) async fn valid(
    options: &RealiserOptions,
    paths: &[StorePath],
    cancel: &CancellationToken,
) -> Result<Vec<StorePath>, Error> {
    let output = run(options, &mut nix_cli::invalid(paths), paths, cancel).await?;
    let answer = String::from_utf8_lossy(&output.stdout);
    let invalid: HashSet<_> = answer.lines().collect();
    let is_valid = |path: &&StorePath| !invalid.contains(path.as_str());
    Ok(paths.iter().filter(is_valid).cloned().collect())
}
