//! The lease under which an image is loaded, and those that were left behind.

use std::{
    collections::HashMap,
    process,
    time::{Duration, SystemTime},
};

use containerd_client::services::v1::{
    CreateRequest, DeleteRequest, ListRequest, leases_client::LeasesClient,
};
use prost_types::Timestamp;
use tonic::{Code, transport::Channel};

use super::Containerd;
use crate::Error;

/// How long a lease lasts that was left behind, as by SIGKILL: that of containerd's
/// own clients.
const EXPIRES_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// A lease that containerd has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: String,
    /// What its maker has written on it.
    pub labels: HashMap<String, String>,
}

impl Containerd {
    /// Does something under a lease, which holds all that is made meanwhile. Its id begins with
    /// `prefix`, and it has these labels. After a failure nothing is left of what was made.
    ///
    /// # Errors
    /// Those of the work, and [`Error::Refused`].
    pub async fn under_lease<T, E: From<Error>>(
        &mut self,
        prefix: &str,
        labels: &HashMap<String, String>,
        work: impl AsyncFnOnce(&Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let id = self.create_lease(prefix, labels).await?;
        self.lease = id.parse().ok();
        let done = work(self).await;
        self.lease = None;
        // After a failure containerd collects at once what has been loaded, so that nothing is
        // left of it.
        let deleted = self.delete_lease(&id, done.is_err()).await;
        let done = done?;
        deleted?;
        Ok(done)
    }

    async fn create_lease(
        &self,
        prefix: &str,
        labels: &HashMap<String, String>,
    ) -> Result<String, Error> {
        let id = unique_id(prefix);
        let expires = Timestamp::from(SystemTime::now() + EXPIRES_AFTER);
        let mut labels = labels.clone();
        labels.insert("containerd.io/gc.expire".to_owned(), expires.to_string());
        let request = CreateRequest {
            id: id.clone(),
            labels,
        };
        self.lease_service()
            .create(self.request(request))
            .await
            .map_err(|status| Error::refused("create a lease", status))?;
        Ok(id)
    }

    /// All leases of the namespace.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn leases(&self) -> Result<Vec<Lease>, Error> {
        let request = self.request(ListRequest::default());
        let listed = self.lease_service().list(request).await;
        let leases = listed
            .map_err(|status| Error::refused("list its leases", status))?
            .into_inner()
            .leases;
        let lease = |lease: containerd_client::services::v1::Lease| Lease {
            id: lease.id,
            labels: lease.labels,
        };
        Ok(leases.into_iter().map(lease).collect())
    }

    /// Deletes a lease that somebody left behind, and returns when what nothing else holds is
    /// collected. One that is gone is none.
    ///
    /// containerd has a snapshotter remove its snapshots once, and does not repeat what fails
    /// because it cannot reach that (`core/metadata`, `GarbageCollect`); and it does not know of a
    /// snapshot that was being made when the connection broke. So this is put off, by an error,
    /// until `snapshotter` is reached, and containerd is made to compare what it has with what the
    /// snapshotter has.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn delete_abandoned_lease(
        &self,
        lease: &Lease,
        snapshotter: &str,
    ) -> Result<(), Error> {
        self.touch(snapshotter).await?;
        match self.delete_lease(&lease.id, true).await {
            Err(Error::Refused { status, .. }) if status.code() == Code::NotFound => Ok(()),
            deleted => deleted,
        }
    }

    /// Deletes a lease. With `sync`, it returns when containerd has collected what it held.
    async fn delete_lease(&self, id: &str, sync: bool) -> Result<(), Error> {
        let request = DeleteRequest {
            id: id.to_owned(),
            sync,
        };
        self.lease_service()
            .delete(self.request(request))
            .await
            .map_err(|status| Error::refused(format_args!("delete the lease {id}"), status))?;
        Ok(())
    }

    fn lease_service(&self) -> LeasesClient<Channel> {
        self.client()
    }
}

/// A name that nothing else has: time and process.
pub(super) fn unique_id(prefix: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanos = now.unwrap_or_default().as_nanos();
    format!("{prefix}-{nanos}-{}", process::id())
}
