# shellcheck shell=bash
# containerd and the snapshotter inside an instance: one set of paths for all that start or use them.

containerd_socket=/run/containerd/containerd.sock
snapshotter_socket=/run/nix-snapshotter/nix-snapshotter.sock
# What cargo builds: `make build` comes first.
nix_snapshotter=$build/target/release/nix-snapshotter
# shellcheck disable=SC2034  # For the scripts that source this file.
nix2container=$build/target/release/nix2container

# exec_containerd: turns into containerd, with the snapshotter as its plugin "nix". containerd 1.7 and 2.x read this.
# Without the CRI, which nothing here speaks and which asks for a pod network, and with no file outside the
# directories that an instance has for itself: /run/nri and /opt/containerd are the machine's.
exec_containerd() {
    local config=/run/containerd/config.toml
    cat >"$config" <<TOML
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.grpc.v1.sandbox-controllers",
  "io.containerd.nri.v1.nri",
]

[grpc]
  address = "$containerd_socket"

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"

[proxy_plugins.nix]
  type = "snapshot"
  address = "$snapshotter_socket"
TOML
    exec containerd --config "$config"
}

# exec_snapshotter: turns into the snapshotter. An empty configuration file keeps one of the machine's own out.
exec_snapshotter() {
    local config=/run/nix-snapshotter/config.toml
    : >"$config"
    exec "$nix_snapshotter" --config "$config" --address "$snapshotter_socket" \
        --root /var/lib/containerd/io.containerd.snapshotter.v1.nix
}

# Whether both serve. The snapshotter is asked on its own socket: containerd would answer out of its own database.
daemons_serve() {
    local socket
    for socket in "$snapshotter_socket" "$containerd_socket"; do
        ctr --address "$socket" --connect-timeout 2s snapshots --snapshotter nix list >/dev/null 2>&1 || return 1
    done
}
