//! Clients of containerd's services, with the limits that containerd itself has.

use containerd_client::services::v1::{
    content_client::ContentClient, diff_client::DiffClient, events_client::EventsClient,
    images_client::ImagesClient, introspection_client::IntrospectionClient,
    leases_client::LeasesClient, snapshots::snapshots_client::SnapshotsClient,
    version_client::VersionClient,
};
use tonic::transport::Channel;

/// Largest message that containerd sends or takes (`defaults.DefaultMaxRecvMsgSize`). A client of
/// tonic takes a quarter of it, which a list of some thousand images exceeds.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// A client of one of containerd's services.
pub trait Client {
    /// Of the containerd at the other end of a connection.
    fn over(channel: Channel) -> Self;
}

macro_rules! clients {
    ($($client:ident),* $(,)?) => {$(
        impl Client for $client<Channel> {
            fn over(channel: Channel) -> Self {
                Self::new(channel)
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES)
            }
        }
    )*};
}

clients!(
    ContentClient,
    DiffClient,
    EventsClient,
    ImagesClient,
    IntrospectionClient,
    LeasesClient,
    SnapshotsClient,
    VersionClient,
);
