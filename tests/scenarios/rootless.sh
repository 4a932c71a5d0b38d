#!/usr/bin/env bash
# Nothing of an ordinary user's containerd belongs to root, and its namespaces are its life.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

services=(nix-snapshotter containerd)

tidy() {
    remove_container "$scenario-redis"
    loginctl disable-linger "$scenario-system"
    userdel --remove "$scenario-system"
}

they_share_the_users_namespaces() {
    local service kind held
    held=$(<"$runtime/containerd-rootless/child_pid")
    for service in "${services[@]}"; do
        for kind in user mnt net; do
            equal "$(readlink "/proc/$held/ns/$kind")" "$(readlink "/proc/$(property "$service" MainPID)/ns/$kind")"
        done
        equal "$(id --user "$SCENARIO_USER")" "$(stat --format=%u "/proc/$(property "$service" MainPID)")"
    done
}

its_directories_are_the_users() {
    equal "$SCENARIO_USER" "$(stat --format=%U "$home/.local/share/nix-snapshotter")"
    equal "$SCENARIO_USER" "$(stat --format=%U "$snapshotter_socket")"
    [[ ! -e /run/nix-snapshotter ]] || fail "/run/nix-snapshotter is outside of the namespaces too"
}

a_container_ends_with_the_namespaces() {
    local process
    start_redis
    process=$(process_of "$scenario-redis")
    manager restart containerd-namespaces.service
    [[ ! -e /proc/$process ]] || fail "the container goes on in namespaces that nobody holds"
    it_all_works_again
}

# With the images, though not with the containers, which containerd knows as ended.
it_all_works_again() {
    containerd_reaches_the_snapshotter
    equal 0 "$(ctr tasks list --quiet | wc --lines)"
    they_share_the_users_namespaces
    remove_container "$scenario-redis"
    has "$(hello)" "Hello, world!"
}

they_come_back_when_rootlesskit_is_killed() {
    local process
    start_redis
    process=$(process_of "$scenario-redis")
    manager kill --kill-whom=main --signal=SIGKILL containerd-namespaces.service
    eventually has_ended "$process"
    for service in "${services[@]}"; do
        eventually manager is-active "$service.service"
    done
    it_all_works_again
}

has_ended() {
    [[ ! -e /proc/$1 ]]
}

what_is_stopped_leaves_nothing() {
    start_redis
    manager stop containerd-namespaces.service
    equal inactive "$(property containerd-namespaces ActiveState)"
    equal "" "$(pgrep --euid "$SCENARIO_USER" 'rootlesskit|slirp4netns|containerd|redis-server|nix-snapshotter' || true)"
    manager start "${services[@]/%/.service}"
    it_all_works_again
}

# Such as the one that a login screen runs as.
users_of_the_system_have_none() {
    local SCENARIO_USER=$scenario-system home=/var/empty runtime
    useradd --system "$SCENARIO_USER"
    runtime=/run/user/$(id --user "$SCENARIO_USER")
    loginctl enable-linger "$SCENARIO_USER"
    eventually manager is-active default.target
    equal no "$(property containerd-namespaces ConditionResult)"
    equal inactive "$(property containerd-namespaces ActiveState)"
}

steps they_share_the_users_namespaces its_directories_are_the_users a_container_ends_with_the_namespaces \
    they_come_back_when_rootlesskit_is_killed what_is_stopped_leaves_nothing users_of_the_system_have_none
