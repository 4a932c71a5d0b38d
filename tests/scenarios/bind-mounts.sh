#!/usr/bin/env bash
# Directories of a user that are shown at other places, which has to be configured: ~/shown at ~/hidden, and
# ~/of-containerd within containerd's own directory. Nothing of the user is lost.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# put FILE: one that has its own name in it.
put() {
    as_owner mkdir -p "${1%/*}"
    as_owner tee "$1" <<<"$1" >/dev/null
}

the_user_has_files_everywhere() {
    manager stop containerd-namespaces.service
    put "$home/shown/file"
    put "$home/hidden/file"
    put "$home/of-containerd/file"
    put "$home/.local/share/containerd/file"
    put "$home/.local/share/containerd/within/file"
    put "$home/.config/cni/file"
    manager start "$target"
}

each_is_shown_at_its_place() {
    equal "$home/shown/file" "$(inside cat "$home/hidden/file")"
    equal "$home/of-containerd/file" "$(inside cat /var/lib/containerd/within/file)"
    equal "$home/.local/share/containerd/file" "$(inside cat /var/lib/containerd/file)"
    equal "$home/.config/cni/file" "$(inside cat /etc/cni/file)"
}

and_all_are_still_there() {
    local file
    for file in shown hidden of-containerd .local/share/containerd .local/share/containerd/within .config/cni; do
        equal "$home/$file/file" "$(cat "$home/$file/file")"
    done
}

the_services_run_as_ever() {
    containerd_reaches_the_snapshotter
    has "$(hello)" "Hello, world!"
}

steps the_user_has_files_everywhere each_is_shown_at_its_place and_all_are_still_there the_services_run_as_ever
