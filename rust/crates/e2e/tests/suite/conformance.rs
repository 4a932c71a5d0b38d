//! containerd's 21 tests of a snapshotter, on the daemon's socket, on the daemon through containerd,
//! and on containerd's own overlayfs snapshotter, which says what is right.

use e2e::conformance_suite;

conformance_suite!(daemon, e2e::conformance::targets::daemon);
conformance_suite!(
    nix_through_containerd,
    e2e::conformance::targets::nix_through_containerd
);
conformance_suite!(
    overlayfs_through_containerd,
    e2e::conformance::targets::overlayfs_through_containerd
);
