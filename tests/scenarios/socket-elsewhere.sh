#!/usr/bin/env bash
# The daemon's socket may lie in a directory of others: that of containerd, which has to be configured so. Nothing else
# there goes with the daemon.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

snapshotter_socket=/run/containerd/nix-snapshotter.sock
theirs=/run/containerd/of-others

tidy() {
    rm -f "$theirs"
    remove_container "$scenario-redis"
    manager start nix-snapshotter.service
}

it_serves_there() {
    [[ -S $snapshotter_socket ]] || fail "there is no $snapshotter_socket"
    has "$(hello)" "Hello, world!"
}

# others: what is there and not the daemon's. The socket of a shim may go some time after its container.
others() {
    find /run/containerd -ignore_readdir_race ! -path "$snapshotter_socket" ! -path '/run/containerd/s/*' | sort
}

what_others_have_there_outlives_it() {
    local before
    start_redis
    touch "$theirs"
    before=$(others)
    manager stop nix-snapshotter.service
    [[ ! -e $snapshotter_socket ]] || fail "$snapshotter_socket is left"
    equal "$before" "$(others)"
    redis_answers
}

it_serves_there_again() {
    manager start nix-snapshotter.service
    containerd_reaches_the_snapshotter
    it_serves_there
}

steps it_serves_there what_others_have_there_outlives_it it_serves_there_again
