#!/usr/bin/env bash
# The snapshotter serves before containerd starts, and is not there while it does not serve.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# As at boot: systemd orders what one request starts.
the_services_start_together() {
    manager stop containerd.service nix-snapshotter.service
    manager start "$target"
    manager is-active --quiet containerd.service || fail "$target does not start containerd"
}

the_snapshotter_is_ready_before_containerd_starts() {
    local ready started
    ready=$(property nix-snapshotter ActiveEnterTimestampMonotonic)
    started=$(property containerd ExecMainStartTimestampMonotonic)
    ((ready > 0 && ready <= started)) || fail "ready at $ready µs, containerd started at $started µs"
}

containerd_reaches_it_at_the_first_attempt() {
    ctr snapshots --snapshotter nix list >/dev/null
    ! journal containerd | grep -E 'nix-snapshotter\.sock.*(refused|no such file|timeout)' ||
        fail "containerd has had to try again"
}

the_socket_goes_with_the_daemon() {
    [[ -S $snapshotter_socket ]] || fail "there is no $snapshotter_socket"
    manager stop nix-snapshotter.service
    [[ ! -e $snapshotter_socket ]] || fail "$snapshotter_socket is left"
}

who_is_told_that_it_has_started_can_use_it() {
    manager start nix-snapshotter.service
    has "$(as_owner nix-snapshotter --address "$snapshotter_socket" status)" "process        $(property nix-snapshotter MainPID)"
}

containerd_finds_it_again() {
    manager is-active --quiet containerd.service || fail "containerd has ended with it"
    ctr snapshots --snapshotter nix list >/dev/null
    has "$(hello)" "Hello, world!"
}

steps the_services_start_together the_snapshotter_is_ready_before_containerd_starts \
    containerd_reaches_it_at_the_first_attempt the_socket_goes_with_the_daemon \
    who_is_told_that_it_has_started_can_use_it containerd_finds_it_again
