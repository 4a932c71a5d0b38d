//! The image format that the daemon and the CLI share: annotations, references, layers, OCI archives.
