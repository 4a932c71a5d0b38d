#!/usr/bin/env bash
# The journal says what the daemon does, and why it does not start.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

tidy() {
    undone nix-snapshotter
    manager start nix-snapshotter.service containerd.service
}

its_start_and_its_end_are_told() {
    local invocation messages
    manager restart nix-snapshotter.service
    invocation=$(property nix-snapshotter InvocationID)
    manager stop nix-snapshotter.service
    messages=$(journal_of "$invocation")
    has "$messages" "serving address="
    has "$messages" "stopping signal=\"SIGTERM\""
    has "$messages" "stopped"
    manager start nix-snapshotter.service
}

messages_have_their_severity() {
    local invocation
    invocation=$(property nix-snapshotter InvocationID)
    has "$(journal_of "$invocation" --priority=info)" "serving address="
    [[ $(journal_of "$invocation" --priority=warning) != *serving* ]] || fail "a notice is a warning for the journal"
}

a_wrong_configuration_fails_the_unit_with_its_reason() {
    drop_in nix-snapshotter <<<$'[Service]\nEnvironment=NIX_SNAPSHOTTER_ADDRESS=unix:///run/wrong.sock\nRestart=no'
    ! manager restart nix-snapshotter.service 2>/dev/null || fail "it starts"
    equal failed "$(property nix-snapshotter ActiveState)"
    has "$(journal nix-snapshotter)" "is not an absolute path"
}

it_starts_when_that_is_mended() {
    undone nix-snapshotter
    manager start nix-snapshotter.service containerd.service
    has "$(hello)" "Hello, world!"
}

steps its_start_and_its_end_are_told messages_have_their_severity a_wrong_configuration_fails_the_unit_with_its_reason \
    it_starts_when_that_is_mended
