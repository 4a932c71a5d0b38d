# All that the commands of the Makefile and the pages in docs/ call for.
{ mkShell
, writeShellScriptBin
, apacheHttpd
, cargo
, clippy
, cni-plugins
, containerd
, cri-tools
, deadnix
, distribution
, e2fsprogs
, fuse-overlayfs
, fuse3
, go
, iproute2
, iptables
, jq
, kubectl
, nerdctl
, nix
, nixpkgs-fmt
, openssl
, path
, protobuf
, redis
, rootlesskit
, runc
, rustc
, rustfmt
, shellcheck
, skopeo
, slirp4netns
, umoci
, util-linux
}:

mkShell {
  packages = [
    # To build and to check.
    cargo
    clippy
    deadnix
    nixpkgs-fmt
    protobuf
    rustc
    rustfmt
    shellcheck

    # To run.
    cni-plugins
    containerd
    cri-tools
    fuse-overlayfs
    fuse3
    iproute2
    iptables
    kubectl
    nerdctl
    nix
    redis
    rootlesskit
    runc
    slirp4netns
    util-linux

    # To test.
    apacheHttpd
    e2fsprogs
    go
    jq
    openssl
    skopeo
    umoci
    # Debian's name of it, which the tests call it by.
    (writeShellScriptBin "docker-registry" ''exec ${distribution}/bin/registry "$@"'')
  ];

  # What dev/store builds comes from the nixpkgs that flake.lock pins.
  NIX_PATH = "nixpkgs=${toString path}";
}
