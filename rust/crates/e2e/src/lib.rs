//! Tests against real containerd, runc and Nix; run by `make test` inside the sandbox.
