# shellcheck shell=bash
# Cargo on the host. What it builds runs in the sandboxes too, whose C library is newer.

# cargo_prepare: goes to the workspace, with what its build needs installed.
cargo_prepare() {
    type -P cargo >/dev/null || die "missing: cargo. Install Rust (https://rustup.rs) or enter 'nix develop'."
    # The crate containerd-client compiles containerd's .proto files, which import protobuf's own.
    host_needs 'protoc=protobuf-compiler libprotobuf-dev'
    cd "$repo/rust" || exit
}
