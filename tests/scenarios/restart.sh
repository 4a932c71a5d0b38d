#!/usr/bin/env bash
# Containers and images outlive restarts of the snapshotter and of containerd.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

tidy() {
    remove_container "$scenario-redis"
}

a_container_runs() {
    start_redis
    redis set key before >/dev/null
}

# goes_on IMAGES: the container is the same, the images are still there, and another container starts.
goes_on() {
    equal before "$(redis get key)"
    equal "$1" "$(ctr images list --quiet)"
    has "$(hello)" "Hello, world!"
}

it_outlives_the_snapshotter() {
    local images
    images=$(ctr images list --quiet)
    manager restart nix-snapshotter.service
    manager is-active --quiet containerd.service || manager start containerd.service
    goes_on "$images"
}

it_outlives_containerd() {
    local images
    images=$(ctr images list --quiet)
    manager restart containerd.service
    goes_on "$images"
}

it_outlives_a_snapshotter_that_is_killed() {
    local images
    images=$(ctr images list --quiet)
    manager kill --kill-whom=main --signal=SIGKILL nix-snapshotter.service
    eventually as_owner nix-snapshotter --address "$snapshotter_socket" status
    containerd_reaches_the_snapshotter
    goes_on "$images"
}

it_can_be_removed() {
    remove_container "$scenario-redis"
    equal "" "$(ctr containers list --quiet | grep "^$scenario-redis" || true)"
}

steps a_container_runs it_outlives_the_snapshotter it_outlives_containerd it_outlives_a_snapshotter_that_is_killed \
    it_can_be_removed
