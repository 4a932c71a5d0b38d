//! Builds OCI images out of Nix closures and loads them into containerd.

fn main() {}
