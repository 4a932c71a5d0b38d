# shellcheck shell=bash
# Running one command under this shell, so that it hears the signals sent to the shell and never outlives it.

# A command that was told to end and has not after this many seconds is killed.
supervise_grace=15

# supervise self|child COMMAND…
# Returns COMMAND's status. SIGTERM and SIGHUP are passed on as SIGTERM; "child" sends it to COMMAND's only child
# instead, for unshare and nsenter, which wait for theirs and hear nothing. A SIGINT that the terminal sent has
# reached the whole foreground group already; any other is passed on as SIGTERM too.
supervise() {
    local whom=$1 status=0 told=0 timer='' command
    shift
    # A background job of a script ignores SIGINT and SIGQUIT: the command shall not. The parent's death ends it.
    setpriv --pdeathsig KILL env --default-signal=INT,QUIT "$@" <&0 &
    command=$!
    trap 'told=1' TERM HUP
    trap '[[ $whom == self ]] || supervise_at_terminal || told=1' INT
    while kill -0 "$command" 2>/dev/null; do
        wait -n ${timer:+"$timer"} "$command" || true
        if ((told == 1)); then
            told=2
            supervise_tell TERM "$whom" "$command"
            [[ -z $timer ]] || continue
            setpriv --pdeathsig KILL sleep "$supervise_grace" &
            timer=$!
        elif [[ -n $timer ]] && ! kill -0 "$timer" 2>/dev/null; then
            timer=
            supervise_tell KILL "$whom" "$command"
        fi
    done
    trap - TERM HUP INT
    [[ -z $timer ]] || kill "$timer" 2>/dev/null || true
    wait "$command" || status=$?
    return "$status"
}

# supervise_tell SIGNAL self|child PID: PID 1 of a namespace is signalled rather than the process that waits for it,
# because that one returns only when the whole namespace has gone.
supervise_tell() {
    local signal=$1 whom=$2 command=$3 target=$3
    [[ $whom == self ]] || read -r target _ <"/proc/$command/task/$command/children" || true
    kill -s "$signal" "${target:-$command}" 2>/dev/null || true
}

# Whether this shell is in the foreground of its terminal (the fields pgrp and tpgid of proc(5)).
supervise_at_terminal() {
    local stat state parent group session terminal foreground
    read -r stat </proc/self/stat
    # shellcheck disable=SC2034  # Fields that only stand before the one wanted.
    read -r state parent group session terminal foreground _ <<<"${stat##*) }"
    ((foreground == group))
}
