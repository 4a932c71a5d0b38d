# shellcheck shell=bash
# shellcheck disable=SC2154  # sandbox_prepare and sandbox_place, in rootfs.sh, set tree, state, fixtures and sandbox_lock.
# The instance that several terminals share. It has the host's network, starts with its first user and ends with the
# last, however they end:
#
#   instance/users    each user's shell holds it shared; the holder waits for it alone, and ends the instance then
#   instance/holder   locked by the holder for its life, and holds its process ID
#   instance/start    held while a user looks whether to start a holder
#   instance/pid      the process ID of the instance's PID 1, once it can be joined
#   instance/log      what the holder had to say
#
# The kernel drops a lock with its process: nothing here needs a clean end.

shared_stop_seconds=30

shared_files() {
    instance=$state/instance
    mkdir -p "$instance"
}

shared_is_alive() {
    [[ -e $instance/holder ]] && ! flock --nonblock --shared "$instance/holder" true
}

# shared_join COMMAND…: runs COMMAND in the shared instance, which is started when there is none.
shared_join() {
    local users start starting
    # Before anything else: from here on the instance waits for this shell. An ending one lets go of it when it is gone.
    exec {users}<>"$instance/users"
    flock --shared "$users"
    exec {start}<>"$instance/start"
    flock "$start"
    # One that has ended lets go of its users first: the last of its processes may be there a moment longer.
    while shared_is_alive && [[ ! -e $instance/pid ]]; do
        sleep 0.05
    done
    if ! shared_is_alive; then
        rm -f "$instance/pid" "$instance/ready"
        # In a session of its own: what ends this terminal is not to end the instance.
        setsid "$repo/dev/sandbox" hold </dev/null >"$instance/log" 2>&1 {users}>&- {start}>&- {sandbox_lock}>&- &
        starting=$!
        until [[ -e $instance/pid ]]; do
            kill -0 "$starting" 2>/dev/null || die "the shared instance does not start: $(tail -n 3 "$instance/log")"
            sleep 0.05
        done
    fi
    exec {start}>&-
    instance_join "$(<"$instance/pid")" "$@"
}

# shared_hold: the life of the shared instance.
shared_hold() {
    local users command
    exec {holder}<>"$instance/holder"
    # One that only looks whether it is locked has it for a moment.
    flock --timeout 5 "$holder" || die "the shared instance is up already."
    echo "$$" >"$instance/holder"
    trap 'shared_end' EXIT
    trap 'exit 0' TERM INT HUP

    instance_environment host copy
    # shellcheck disable=SC2016  # The inner shell expands it.
    instance_command host bash -c 'touch "$1" && exec sleep infinity' sh "$instance/ready"
    setpriv --pdeathsig KILL "${command[@]}" &
    child=$!
    until [[ -e $instance/ready ]]; do
        kill -0 "$child" 2>/dev/null || die "the shared instance ended while it was being started."
        sleep 0.05
    done
    exec {users}<>"$instance/users"
    instance_first
    echo "$first" >"$instance/pid.new"
    mv "$instance/pid.new" "$instance/pid"
    setpriv --pdeathsig KILL flock "$users" &
    waiter=$!
    wait -n "$child" "$waiter" || true
}

shared_end() {
    rm -f "$instance/pid" "$instance/ready"
    instance_end
    [[ -z ${waiter-} ]] || kill "$waiter" 2>/dev/null || true
}

# shared_stop: ends the shared instance, if there is one, and waits until it is gone.
shared_stop() {
    shared_is_alive || return 0
    note "ending the shared instance of ${state##*/}"
    kill -TERM "$(<"$instance/holder")"
    flock --timeout "$shared_stop_seconds" --shared "$instance/holder" true ||
        die "the shared instance does not end: its process is $(<"$instance/holder")."
}
