//! The lease under which an image is loaded.

use std::{
    collections::HashMap,
    process,
    time::{Duration, SystemTime},
};

use containerd_client::services::v1::{CreateRequest, DeleteRequest, leases_client::LeasesClient};
use prost_types::Timestamp;

use super::Containerd;
use crate::Error;

/// How long a lease lasts that was left behind, as by SIGKILL: that of containerd's
/// own clients.
const EXPIRES_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

impl Containerd {
    /// Does something under a lease, which holds all that is made meanwhile. Its id begins with
    /// `prefix`. After a failure nothing is left of what was made.
    ///
    /// # Errors
    /// Those of the work, and [`Error::Refused`].
    pub async fn under_lease<T, E: From<Error>>(
        &mut self,
        prefix: &str,
        work: impl AsyncFnOnce(&Self) -> Result<T, E>,
    ) -> Result<T, E> {
        self.create_lease(prefix).await?;
        let done = work(self).await;
        let deleted = self.delete_lease(done.is_err()).await;
        let done = done?;
        deleted?;
        Ok(done)
    }

    async fn create_lease(&mut self, prefix: &str) -> Result<(), Error> {
        let id = unique_id(prefix);
        let expires = Timestamp::from(SystemTime::now() + EXPIRES_AFTER);
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expires.to_string())]);
        let request = CreateRequest {
            id: id.clone(),
            labels,
        };
        LeasesClient::new(self.channel.clone())
            .create(self.request(request))
            .await
            .map_err(|status| Error::refused("create a lease", status))?;
        self.lease = id.parse().ok();
        Ok(())
    }

    /// Deletes the lease. After a failure containerd collects at once what has been
    /// loaded, so that nothing is left of it.
    async fn delete_lease(&mut self, failed: bool) -> Result<(), Error> {
        let Some(lease) = self.lease.take() else {
            return Ok(());
        };
        let request = DeleteRequest {
            id: lease.to_str().unwrap_or_default().to_owned(),
            sync: failed,
        };
        LeasesClient::new(self.channel.clone())
            .delete(self.request(request))
            .await
            .map_err(|status| Error::refused("delete its lease", status))?;
        Ok(())
    }
}

/// A name that nothing else has: time and process.
pub(super) fn unique_id(prefix: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanos = now.unwrap_or_default().as_nanos();
    format!("{prefix}-{nanos}-{}", process::id())
}
