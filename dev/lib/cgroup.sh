# shellcheck shell=bash
# A control group of its own for each instance, so that the container "hello" of one is not the container "hello" of
# another, nor of the machine's own containerd: runc names a container's group after the container alone.
#
# Below a version 1 hierarchy the group lies under the caller's. Under version 2 it lies at the top, because a group
# that has processes cannot hand controllers to the groups below it (cgroups(7), "no internal processes").

cgroup_prefix=nix-snapshotter-sandbox

# Prints "MOUNT GROUP" for each hierarchy: where it is mounted and the directory of the group of process $1 in it.
cgroup_hierarchies() {
    local controllers path mount
    while IFS=: read -r _ controllers path; do
        case $controllers in
            '') mount=/sys/fs/cgroup && [[ -e $mount/cgroup.controllers ]] || mount=/sys/fs/cgroup/unified ;;
            name=*) mount=/sys/fs/cgroup/${controllers#name=} ;;
            *) mount=/sys/fs/cgroup/$controllers ;;
        esac
        mountpoint --quiet "$mount" || continue
        # A namespace or a bind mount may show the path of a group that cannot be seen from here.
        [[ -d $mount$path ]] || path=/
        path=${path%/}
        printf '%s %s\n' "$mount" "$mount$path"
    done <"/proc/$1/cgroup"
}

# cgroup_create: makes this shell's group in every hierarchy and sets cgroups, the list of "MOUNT GROUP".
cgroup_create() {
    local mount group file controllers
    cgroups=()
    cgroup_sweep
    while read -r mount group; do
        [[ $mount != /sys/fs/cgroup ]] || group=$mount
        controllers=$group/cgroup.subtree_control
        group=$group/$cgroup_prefix-$$
        mkdir -p "$group" || die "cannot make the control group $group"
        cgroups+=("$mount $group")
        # A new cpuset has no processor and no memory node, and takes no process before it has.
        for file in cpuset.cpus cpuset.mems; do
            [[ $mount == /sys/fs/cgroup || ! -e $group/$file ]] || cat "${group%/*}/$file" >"$group/$file"
        done
        if [[ $mount == /sys/fs/cgroup ]]; then
            for file in $(<"$mount/cgroup.controllers"); do
                echo "+$file" 2>/dev/null >"$controllers" || note "the controller $file cannot be handed on"
            done
            mkdir -p "$group/init"
        fi
    done < <(cgroup_hierarchies "$$")
    ((${#cgroups[@]} > 0)) || die "no control groups are mounted below /sys/fs/cgroup, and runc needs them."
}

# cgroup_enter PID GROUP…: moves a process.
cgroup_enter() {
    local pid=$1 group
    shift
    for group in "$@"; do
        echo "$pid" >"$group/cgroup.procs"
    done
}

# Removes this shell's groups. Their processes have been killed, but may need a moment to be gone.
cgroup_remove() {
    local entry tries
    for entry in "${cgroups[@]}"; do
        for ((tries = 0; tries < 40; tries++)); do
            cgroup_remove_tree "${entry#* }"
            [[ -d ${entry#* } ]] || break
            sleep 0.05
        done
    done
    cgroups=()
}

cgroup_remove_tree() {
    find "$1" -depth -type d -exec rmdir -- {} + 2>/dev/null || true
}

# Removes the groups of instances whose script was killed before it could.
cgroup_sweep() {
    local mount group stale
    while read -r mount group; do
        [[ $mount != /sys/fs/cgroup ]] || group=$mount
        for stale in "$group/$cgroup_prefix-"*; do
            [[ ! -d $stale || -e /proc/${stale##*-} ]] || cgroup_remove_tree "$stale"
        done
    done < <(cgroup_hierarchies "$$")
}
