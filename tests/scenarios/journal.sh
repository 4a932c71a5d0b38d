#!/usr/bin/env bash
# The journal says what the daemon does, and why it does not start.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

tidy() {
    undone nix-snapshotter
    manager start nix-snapshotter.service containerd.service
}

its_start_and_its_end_are_told() {
    local since
    since=$(now)
    manager restart nix-snapshotter.service
    eventually said_since "$since" "serving address="
    since=$(now)
    manager stop nix-snapshotter.service
    eventually said_since "$since" 'stopping signal="SIGTERM"'
    eventually said_since "$since" "stopped realisations="
    manager start nix-snapshotter.service
}

it_says_that_it_serves() {
    has "$(journal nix-snapshotter --priority=info)" "serving address="
}

messages_have_their_severity() {
    eventually it_says_that_it_serves
    [[ $(journal nix-snapshotter --priority=warning) != *serving* ]] || fail "a notice is a warning for the journal"
}

a_wrong_configuration_fails_the_unit_with_its_reason() {
    local since
    since=$(now)
    drop_in nix-snapshotter <<<$'[Service]\nEnvironment=NIX_SNAPSHOTTER_LOG_FORMAT=xml\nRestart=no'
    ! manager restart nix-snapshotter.service 2>/dev/null || fail "it starts"
    equal failed "$(property nix-snapshotter ActiveState)"
    eventually said_since "$since" "invalid value 'xml'"
}

it_starts_when_that_is_mended() {
    undone nix-snapshotter
    manager start nix-snapshotter.service containerd.service
    containerd_reaches_the_snapshotter
    has "$(hello)" "Hello, world!"
}

steps its_start_and_its_end_are_told messages_have_their_severity a_wrong_configuration_fails_the_unit_with_its_reason \
    it_starts_when_that_is_mended
