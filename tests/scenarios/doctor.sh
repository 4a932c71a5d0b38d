#!/usr/bin/env bash
# What is configured fits together, and users need not say where it is.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# login COMMAND: in a login shell of whoever has the services.
login() {
    as_owner env --unset=CONTAINERD_ADDRESS --unset=CONTAINERD_NAMESPACE bash --login -c "$1"
}

status_finds_the_daemon() {
    has "$(login "nix-snapshotter status")" "process        $(property nix-snapshotter MainPID)"
}

doctor_finds_no_error() {
    local told
    if [[ -n ${SCENARIO_USER-} ]]; then
        told=$(login "containerd-nsenter nix-snapshotter doctor \
            --containerd-config /etc/nix-snapshotter/rootless-containerd.toml") || fail "$told"
    else
        told=$(login "nix-snapshotter doctor") || fail "$told"
    fi
    # It has read the file: there is no such finding of one that is missing.
    has "$told" containerd-config
}

steps status_finds_the_daemon doctor_finds_no_error
