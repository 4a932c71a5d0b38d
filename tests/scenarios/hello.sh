#!/usr/bin/env bash
# A container runs out of the store.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

the_services_are_up() {
    local unit
    for unit in nix-snapshotter containerd preload-containerd; do
        eventually manager is-active "$unit.service"
    done
}

the_container_says_hello() {
    has "$(hello)" "Hello, world!"
}

# What is in snapshots are mount points and links.
nothing_of_the_image_is_copied() {
    local bytes
    bytes=$(ctr snapshots --snapshotter nix usage -b | awk 'NR > 1 { sum += $2 } END { print sum + 0 }')
    ((bytes < 1000000)) || fail "the snapshots have $bytes bytes"
}

nothing_of_the_container_is_left() {
    equal "" "$(ctr containers list --quiet | grep "^$scenario-hello" || true)"
    equal "" "$(ctr snapshots --snapshotter nix list | grep "^$scenario-hello" || true)"
}

steps the_services_are_up the_container_says_hello nothing_of_the_image_is_copied nothing_of_the_container_is_left
