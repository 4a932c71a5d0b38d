#!/usr/bin/env bash
# Images are loaded when the machine starts, and not again.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Names of the images, without loading them.
names() {
    local archive
    for archive in "$HELLO_IMAGE" "$REDIS_IMAGE"; do
        nix2container inspect "$archive" | awk '$1 == "name" { print $2 }'
    done | sort
}

both_images_are_there() {
    local name
    eventually manager is-active preload-containerd.service
    for name in $(names); do
        has "$(ctr images list --quiet)" "$name"
    done
}

a_second_time_changes_nothing() {
    local images snapshots since
    since=$(now)
    images=$(ctr images list | sort) snapshots=$(ctr snapshots --snapshotter nix list | sort)
    manager restart preload-containerd.service
    equal "$images" "$(ctr images list | sort)"
    equal "$snapshots" "$(ctr snapshots --snapshotter nix list | sort)"
    eventually said_since "$since" "was there already"
}

an_image_that_was_removed_is_loaded_again() {
    local image
    image=$(image_of "$HELLO_IMAGE")
    as_owner nix2container --log-level warn --quiet unload "$image" >/dev/null
    manager restart preload-containerd.service
    has "$(ctr images list --quiet)" "$image"
    has "$(hello)" "Hello, world!"
}

steps both_images_are_there a_second_time_changes_nothing an_image_that_was_removed_is_loaded_again
