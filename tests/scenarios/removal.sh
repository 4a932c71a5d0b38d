#!/usr/bin/env bash
# Of a container that is removed nothing is left on the disk, whoever its files belong to.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

tidy() {
    remove_container "$scenario-redis"
}

# snapshots: the directory that has one for each snapshot.
snapshots() {
    as_owner nix-snapshotter --address "$snapshotter_socket" status | awk '$1 == "root" { print $2 "/snapshots" }'
}

# The owner is another than the daemon's; without a right of its own nobody else may enter the one directory, nor delete
# from the other.
a_container_leaves_files_of_another_owner() {
    local files found
    start_redis
    files=/proc/$(process_of "$scenario-redis")/root/files
    inside mkdir "$files" "$files/closed" "$files/sticky"
    inside touch "$files/closed/file" "$files/sticky/file"
    inside chown --recursive 999:999 "$files"
    inside chmod 1777 "$files/sticky"
    inside chmod 0500 "$files/closed"
    # Snapshots of others may be deleted meanwhile.
    found=$(find "$(snapshots)" -ignore_readdir_race -path '*/files/sticky/file' -printf '%U\n')
    equal "$(inside stat --format=%u "$files/sticky/file")" 999
    # As the machine sees it: of an ordinary user's container, one of the ids that are the user's too.
    [[ -z ${SCENARIO_USER-} && $found == 999 ]] || ((found > 65535)) || fail "the file belongs to $found"
}

they_go_with_it() {
    remove_container "$scenario-redis"
    eventually as_many_directories_as_snapshots
    equal "" "$(find "$(snapshots)" -path '*/files/*')"
}

as_many_directories_as_snapshots() {
    equal "$(ctr snapshots --snapshotter nix list | tail -n +2 | wc --lines)" \
        "$(find "$(snapshots)" -mindepth 1 -maxdepth 1 | wc --lines)"
}

no_warning_is_left_in_the_journal() {
    equal "" "$(journal nix-snapshotter --priority=warning | grep 'stays behind' || true)"
}

steps a_container_leaves_files_of_another_owner they_go_with_it no_warning_is_left_in_the_journal
