//! The daemon: a containerd snapshotter that mounts Nix store paths.

fn main() {}
