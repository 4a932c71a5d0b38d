#!/usr/bin/env bash
# The program that is configured as external_builder provides store paths. It has to append a line with its two
# arguments to $EXTERNAL_BUILDER_LOG, a file that the daemon may write, and then to do what it is called for.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

files=/tmp/scenario-$scenario
image=docker.io/library/scenario-$scenario:latest

tidy() {
    as_owner nix2container --log-level error --quiet unload "$image"
    rm -rf "$files"
}

it_is_called_for_each_store_path() {
    local path
    build_image "$files" "$image" --annotations per-path
    path=$(<"$files/closure")
    image_of "$files/archive.tar" >/dev/null
    grep --quiet -- " $path\$" "$EXTERNAL_BUILDER_LOG" || fail "it was not called for $path"
}

its_link_is_the_root_of_the_path() {
    local link
    link=$(awk -v path="$(<"$files/closure")" '$2 == path { print $1 }' "$EXTERNAL_BUILDER_LOG" | tail -n 1)
    equal "$(<"$files/closure")" "$(readlink "$link")"
    has "$(nix-store --query --roots "$(<"$files/closure")" 2>/dev/null)" "$link"
}

steps it_is_called_for_each_store_path its_link_is_the_root_of_the_path
