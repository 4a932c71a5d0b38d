#!/usr/bin/env bash
# The garbage collector leaves what an image needs, for as long as there is the image.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

files=/tmp/scenario-$scenario
image=docker.io/library/scenario-$scenario:latest

tidy() {
    as_owner nix2container --log-level error --quiet unload "$image"
    rm -rf "$files"
}

an_image_is_loaded() {
    build_image "$files" "$image"
    equal "$image" "$(image_of "$files/archive.tar")"
}

# root: the GC root of the store path.
root() {
    nix-store --query --roots "$(<"$files/closure")" 2>/dev/null | grep -- "/gcroots/" | awk '{ print $1 }'
}

the_collector_leaves_its_store_path() {
    nix-collect-garbage >/dev/null 2>&1
    [[ -e $(<"$files/closure") ]] || fail "the store path is gone"
    root >"$files/root"
    [[ -L $(<"$files/root") ]] || fail "no GC root of a snapshot holds it"
}

the_root_goes_with_the_image() {
    as_owner nix2container --log-level warn --quiet unload "$image" >/dev/null
    eventually root_is_gone
}

root_is_gone() {
    [[ ! -L $(<"$files/root") ]]
}

the_collector_takes_it_then() {
    nix-collect-garbage >/dev/null 2>&1
    [[ ! -e $(<"$files/closure") ]] || fail "$(<"$files/closure") is still there"
}

what_other_images_need_is_left() {
    has "$(hello)" "Hello, world!"
}

steps an_image_is_loaded the_collector_leaves_its_store_path the_root_goes_with_the_image the_collector_takes_it_then \
    what_other_images_need_is_left
