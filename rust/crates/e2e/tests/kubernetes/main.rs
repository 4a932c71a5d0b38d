//! Kubelet, crictl and nerdctl on the daemon; run by `make test-kubernetes`, which builds them.

mod clients;
mod cluster;
mod failures;
mod kubelet;
mod pods;
mod policies;
