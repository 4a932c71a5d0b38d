# shellcheck shell=bash
# Starting an instance. Sourced after rootfs.sh, whose sandbox_prepare sets tree, state and fixtures, and supervise.sh.

# instance_environment NET STORE: makes the control groups and exports what dev/lib/launch and dev/inside/ read.
instance_environment() {
    cgroup_create
    export SANDBOX_NET=$1 SANDBOX_STORE=$2 SANDBOX_TREE=$tree SANDBOX_FIXTURES=$fixtures SANDBOX_CWD=$PWD
    SANDBOX_HIERARCHIES=$(printf '%s\n' "${cgroups[@]}")
    SANDBOX_GROUPS=$(printf '%s\n' "${cgroups[@]#* }")
    export SANDBOX_HIERARCHIES SANDBOX_GROUPS
}

# instance_command NET WORD…: sets command, the words that start the instance; WORDs are for its PID 1.
instance_command() {
    local net=$1 options=()
    shift
    [[ $net == host ]] || options=(--net)
    command=("$BASH" "$repo/dev/lib/launch" start "${options[@]}" -- "$@")
}

# instance_run NET STORE COMMAND…: runs COMMAND in a fresh instance and returns its status.
instance_run() {
    local net=$1 store=$2 status=0 command
    shift 2
    instance_environment "$net" "$store"
    instance_command "$net" "$@"
    supervise child "${command[@]}" || status=$?
    cgroup_remove
    return "$status"
}

# instance_boot NET COMMAND…: runs COMMAND in a fresh instance whose PID 1 is systemd, and returns its status.
instance_boot() {
    local net=$1 status=0 command
    shift
    # What the instance has to say is about its start; unshare has something to say about its end.
    log=$(mktemp)
    trap 'instance_end; rm "$log"' EXIT
    trap 'exit 143' TERM HUP
    trap 'exit 130' INT
    export SANDBOX_INIT=boot
    instance_environment "$net" copy
    instance_command "$net"
    setpriv --pdeathsig KILL "${command[@]}" </dev/null >"$log" 2>&1 &
    child=$!
    until instance_first && instance_is_in_its_scope; do
        kill -0 "$child" 2>/dev/null || die "systemd is not started: $(tail -n 3 "$log")"
        sleep 0.05
    done
    instance_join "$first" "$repo/dev/inside/booted" "$@" || status=$?
    return "$status"
}

# instance_first: sets first, the PID 1 of the instance that child waits for, as it is numbered here.
instance_first() {
    # It is the only child of the unshare that waits for it.
    first=$(<"/proc/$child/task/$child/children")
    first=${first% }
    [[ -n $first ]]
} 2>/dev/null

# Whether first is systemd and has moved itself to a group of its own: no process can join the one before, once that
# hands on controllers (cgroups(7), "no internal processes").
instance_is_in_its_scope() {
    [[ $(<"/proc/$first/comm") == systemd ]] && grep --quiet '/init\.scope$' "/proc/$first/cgroup"
} 2>/dev/null

# instance_join PID COMMAND…: runs COMMAND in the instance that has PID, and returns its status.
instance_join() {
    local pid=$1 status=0 groups
    shift
    groups=$(cgroup_hierarchies "$pid" | cut -d ' ' -f 2)
    export SANDBOX_GROUPS=$groups SANDBOX_TREE=$tree SANDBOX_FIXTURES=$fixtures SANDBOX_CWD=$PWD
    supervise child "$BASH" "$repo/dev/lib/launch" join "$pid" -- "$@" || status=$?
    return "$status"
}

# instance_end: ends the instance that child waits for, if there is one.
instance_end() {
    if [[ -n ${child-} ]]; then
        supervise_tell KILL self "$child" || kill -KILL "$child" 2>/dev/null || true
        wait "$child" || true
    fi
    cgroup_remove
}
