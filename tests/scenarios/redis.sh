#!/usr/bin/env bash
# A server runs out of the store.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

store_path='/nix/store/[0-9a-z]{32}-[0-9A-Za-z+._?=-]+'

tidy() {
    remove_container "$scenario-redis"
}

it_answers() {
    start_redis
}

# Each is mounted read-only at its own place, from the same place of the store (proc_pid_mountinfo(5): the fourth field
# is the root within the file system, the fifth the mount point, the sixth has the options).
its_store_paths_are_mounts_of_the_store() {
    local pid path count=0
    pid=$(process_of "$scenario-redis")
    for path in $(nix2container inspect "$REDIS_IMAGE" | grep -oE "$store_path" | grep -- -redis- | sort --unique); do
        awk -v path="$path" -v name="/${path##*/}" '
            $5 == path && substr($4, length($4) - length(name) + 1) == name && $6 ~ /^ro(,|$)/ { found = 1 }
            END { exit !found }' "/proc/$pid/mountinfo" || fail "$path is no read-only mount of itself"
        count=$((count + 1))
    done
    ((count > 0)) || fail "the image names no store path of redis"
}

steps it_answers its_store_paths_are_mounts_of_the_store
