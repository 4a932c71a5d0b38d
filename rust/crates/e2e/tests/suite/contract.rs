//! What containerd relies on beyond its own suite: codes, labels, namespaces, collections and images.

use e2e::codes_suite;

codes_suite!(daemon, e2e::conformance::targets::daemon);
codes_suite!(
    nix_through_containerd,
    e2e::conformance::targets::nix_through_containerd
);
codes_suite!(
    overlayfs_through_containerd,
    e2e::conformance::targets::overlayfs_through_containerd
);
