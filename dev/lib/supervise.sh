# shellcheck shell=bash
# Running one command under this shell, so that it hears the signals sent to the shell and never outlives it.

# A command that was told to end and has not after this many seconds is killed.
supervise_grace=15

# supervise self|child COMMAND…
# Returns COMMAND's status. SIGTERM and SIGHUP are passed on as SIGTERM; "child" sends it to COMMAND's only child
# instead, for unshare and nsenter, which wait for theirs and hear nothing. A SIGINT that the terminal sent has
# reached the whole foreground group already; any other is passed on as SIGTERM too.
#
# A runner waits for COMMAND in the foreground and reports its status through a pipe: the `wait` of bash 5.2 loses the
# status of a job that ends while a trap is run.
supervise() {
    local whom=$1 shell=$BASHPID status='' part='' interrupted='' wanted='' told='' runner results
    shift
    exec {results}<> <(:)
    # A background job of a script ignores SIGINT and SIGQUIT: the command shall not. The parent's death ends each.
    # shellcheck disable=SC2016  # The runner expands it.
    setpriv --pdeathsig KILL env --default-signal=INT,QUIT "$BASH" -c \
        '[[ $PPID == "$1" ]] || exit
        shift
        trap : TERM HUP INT
        setpriv --pdeathsig KILL "$@" 2>&4 3>&- 4>&-
        echo "$?" >&3' runner "$shell" "$@" \
        <&0 3>&"$results" 4>&2 2>/dev/null {results}>&- &
    runner=$!
    # No more than a note: what a trap runs while `read` waits may undo its time limit.
    trap 'wanted=1' TERM HUP
    trap 'interrupted=1' INT
    until read -r -t 0.25 -u "$results" part; do
        # A time limit may fall between two characters: `read` has taken the first.
        status+=$part
        if [[ -n $interrupted ]]; then
            interrupted=
            [[ $whom == self ]] || supervise_at_terminal || wanted=1
        fi
        [[ -z $wanted ]] || supervise_stop
        if ! kill -0 "$runner" 2>/dev/null; then
            # It may have reported after the time limit and before it ended; this ends the line if not.
            echo >&"$results"
            read -r -u "$results" part
            break
        fi
    done
    status+=$part
    trap - TERM HUP INT
    exec {results}>&-
    # Without a report the runner was killed.
    return "${status:-137}"
}

# Tells the command to end, or kills it when it has had its time.
supervise_stop() {
    if [[ -z $told ]]; then
        ! supervise_tell TERM "$whom" "$runner" || told=$SECONDS
    elif ((SECONDS - told > supervise_grace)); then
        note "killed: still running after it was told to end"
        told=$SECONDS
        supervise_tell KILL "$whom" "$runner" || true
    fi
}

# supervise_tell SIGNAL self|child PARENT: fails while there is nothing to signal yet. For "child" that is PID 1 of a
# namespace, not the process that waits for it, because that one returns only when the whole namespace has gone.
supervise_tell() {
    local signal=$1 whom=$2 target=$3
    read -r target _ <"/proc/$target/task/$target/children"
    [[ $whom == self ]] || read -r target _ <"/proc/$target/task/$target/children"
    [[ -n $target ]] && kill -s "$signal" "$target"
} 2>/dev/null

# Whether this shell is in the foreground of its terminal (the fields pgrp and tpgid of proc(5)).
supervise_at_terminal() {
    local stat state parent group session terminal foreground
    read -r stat </proc/self/stat
    # shellcheck disable=SC2034  # Fields that only stand before the one wanted.
    read -r state parent group session terminal foreground _ <<<"${stat##*) }"
    ((foreground == group))
}
