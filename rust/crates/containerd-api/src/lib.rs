//! Generated server bindings of containerd's Snapshots service.
