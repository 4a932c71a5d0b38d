//! containerd's snapshot model on a transactional metadata store and overlayfs directories; it knows no Nix.
