# shellcheck shell=bash
# Starting an instance. Sourced after rootfs.sh, whose sandbox_prepare sets tree, state and fixtures.

# instance_environment NET STORE: makes the control groups and exports what dev/lib/launch and dev/inside/ read.
instance_environment() {
    cgroup_create
    export SANDBOX_NET=$1 SANDBOX_STORE=$2 SANDBOX_TREE=$tree SANDBOX_FIXTURES=$fixtures SANDBOX_CWD=$PWD
    SANDBOX_HIERARCHIES=$(printf '%s\n' "${cgroups[@]}")
    SANDBOX_GROUPS=$(printf '%s\n' "${cgroups[@]#* }")
    export SANDBOX_HIERARCHIES SANDBOX_GROUPS
}

# instance_command NET COMMAND…: sets command, the words that start the instance.
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
