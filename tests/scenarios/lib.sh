# shellcheck shell=bash
# What the scenarios share. A scenario is the steps of one behaviour of nix-snapshotter.service and containerd.service,
# run as root where both are installed: in virtual machines of NixOS and in the sandbox of dev/test-systemd alike.
#
#   [VARIABLE=VALUE…] bash tests/scenarios/NAME.sh
#
# Results are printed as Rust's test harness prints them. The first step that fails ends a scenario, with the end of
# the journal. Read from the environment:
#
#   HELLO_IMAGE, REDIS_IMAGE   archives in the store, which preload-containerd.service loads: the first says "Hello,
#                              world!", the second serves redis on port 6379
#   SCENARIO_USER              the user whose services these are; without it they are the machine's
#   EXTERNAL_BUILDER_LOG       of external-builder.sh alone, which says more
#
# On the PATH: the programs of systemd, util-linux, coreutils, grep, sed and awk; containerd's ctr, redis-cli,
# nix-snapshotter, nix2container, nix-store and nix-collect-garbage; for the services of a user containerd-nsenter.
set -euo pipefail

scenario=$(basename "$0" .sh)
# Seconds until what is to happen by itself has happened.
patience=30

# shellcheck disable=SC2034  # Some are for the scenarios.
if [[ -n ${SCENARIO_USER-} ]]; then
    runtime=/run/user/$(id --user "$SCENARIO_USER")
    home=$(getent passwd "$SCENARIO_USER" | cut --delimiter=: --fields=6)
    containerd_socket=$runtime/containerd/containerd.sock
    snapshotter_socket=$runtime/nix-snapshotter/nix-snapshotter.sock
    target=default.target drop_ins=/run/systemd/user
else
    containerd_socket=/run/containerd/containerd.sock
    snapshotter_socket=/run/nix-snapshotter/nix-snapshotter.sock
    target=multi-user.target drop_ins=/run/systemd/system
fi
export CONTAINERD_ADDRESS=$containerd_socket CONTAINERD_NAMESPACE=default

# steps STEP…: runs the functions of these names in turn, each in a process of its own that ends at the first command
# that fails, and prints the results. `tidy`, where a scenario has it, runs before and after them.
steps() {
    local step passed=0 failed=0 verdict=ok
    if [[ -n ${SCENARIO_STEP-} ]]; then
        "$SCENARIO_STEP"
        exit
    fi
    # It may be the first that waits for the whole machine, or for all of the user's services.
    patience=120 eventually manager is-active "$target"
    tidied
    for step in "$@"; do
        # Steps start services more often than systemd permits in so short a time.
        manager reset-failed
        if ! SCENARIO_STEP=$step "$BASH" "$0"; then
            journalctl --no-pager --output=short-monotonic --lines=40 >&2
            echo "test $scenario::$step ... FAILED"
            verdict=FAILED failed=1
            break
        fi
        echo "test $scenario::$step ... ok"
        passed=$((passed + 1))
    done
    tidied
    echo "test result: $verdict. $passed passed; $failed failed; 0 ignored"
    ((failed == 0))
}

tidied() {
    ! declare -F tidy >/dev/null || tidy >/dev/null 2>&1 || true
}

fail() {
    printf '%s\n' "$*" >&2
    return 1
}

# equal WANT GOT
equal() {
    [[ $1 == "$2" ]] || fail "expected $1, got $2"
}

# has TEXT PART
has() {
    [[ $1 == *"$2"* ]] || fail "expected \"$2\" in: $1"
}

# eventually COMMAND…: until it succeeds.
eventually() {
    local deadline=$((SECONDS + patience))
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "not within $patience s: $*"
        sleep 0.1
    done
}

# as_owner COMMAND…: as the user whose services these are, in the environment that they have.
as_owner() {
    if [[ -n ${SCENARIO_USER-} ]]; then
        setpriv --reuid "$SCENARIO_USER" --regid "$(id --group "$SCENARIO_USER")" --init-groups \
            env HOME="$home" USER="$SCENARIO_USER" XDG_RUNTIME_DIR="$runtime" "$@"
    else
        command "$@"
    fi
}

# inside COMMAND…: where containerd is. Clients such as ctr mount images themselves, and so must be there.
inside() {
    if [[ -n ${SCENARIO_USER-} ]]; then
        as_owner containerd-nsenter "$@"
    else
        command "$@"
    fi
}

ctr() {
    inside ctr "$@"
}

# manager ARGUMENT…: systemctl, of the manager of these services.
manager() {
    if [[ -n ${SCENARIO_USER-} ]]; then
        as_owner systemctl --user "$@"
    else
        systemctl "$@"
    fi
}

# property UNIT NAME
property() {
    manager show --value --property="$2" "$1.service"
}

# journal UNIT [OPTION…]: what it has said, and systemd of it, since it was last started.
journal() {
    local invocation
    invocation=$(property "$1" InvocationID)
    shift
    journalctl --no-pager --output=cat "$@" \
        "_SYSTEMD_INVOCATION_ID=$invocation" + "INVOCATION_ID=$invocation" + "USER_INVOCATION_ID=$invocation"
}

# now: where the journal ends.
now() {
    journalctl --no-pager --lines=0 --show-cursor | sed --quiet 's/^-- cursor: //p'
}

# said_since NOW TEXT: whether anybody has said it since then. The journal may not know whose a message was, when the
# process has ended at once.
said_since() {
    [[ $(journalctl --no-pager --output=cat --after-cursor="$1") == *"$2"* ]]
}

# drop_in UNIT: adds what is on standard input to a unit, until the machine is restarted or `undone` is called.
drop_in() {
    mkdir -p "$drop_ins/$1.service.d"
    cat >"$drop_ins/$1.service.d/scenario.conf"
    manager daemon-reload
}

# undone UNIT
undone() {
    rm -f "$drop_ins/$1.service.d/scenario.conf"
    manager daemon-reload
    manager reset-failed "$1.service" 2>/dev/null || true
}

# build_image DIRECTORY NAME [OPTION…]: makes the archive of an image of a store path that nothing else needs, as
# archive.tar in the new DIRECTORY, and beside it closure, which names the path.
build_image() {
    local directory=$1 name=$2
    shift 2
    mkdir --mode=0777 "$directory"
    echo "$RANDOM" >"$directory/made"
    nix-store --add "$directory/made" >"$directory/closure"
    echo '{}' >"$directory/config.json"
    nix2container --log-level warn build "$@" --config "$directory/config.json" --closure "$directory/closure" \
        --ref "$name" "$directory/archive.tar"
}

# image_of ARCHIVE: the name of its image. What containerd has already is not loaded again.
image_of() {
    as_owner nix2container --log-level warn --quiet load "$1"
}

# run_container NAME IMAGE [OPTION…]: with the resources of an ordinary process, and not in a control group of its own
# where the owner may make none at the top.
run_container() {
    local name=$1 image=$2 options=(--cpu-shares 0)
    shift 2
    [[ -z ${SCENARIO_USER-} ]] || options+=(--cgroup '')
    ctr run --snapshotter nix "${options[@]}" "$@" "$image" "$name"
}

# remove_container NAME
remove_container() {
    ctr tasks kill --signal SIGKILL "$1" 2>/dev/null || true
    eventually task_has_ended "$1"
    # It complains of the status 137, too.
    ctr tasks rm "$1" 2>/dev/null || true
    ctr containers rm "$1"
}

task_has_ended() {
    [[ $(ctr tasks list | awk -v name="$1" '$1 == name { print $3 }') != RUNNING ]]
}

# process_of NAME: the process of a container that runs.
process_of() {
    ctr tasks list | awk -v name="$1" '$1 == name { print $2 }'
}

# containerd_reaches_the_snapshotter: it has, after one that was away for long. It waits up to three seconds between its
# attempts to connect (gRPC's back-off).
containerd_reaches_the_snapshotter() {
    eventually ctr snapshots --snapshotter nix list
}

# hello: what the container says. The shim writes it down: of what passes through ctr, some is lost now and then
# (containerd's pkg/cio/io_unix.go closes pipes that may not have been read).
hello() {
    local said status=0
    said=$(as_owner mktemp)
    run_container "$scenario-hello-$RANDOM" "$(image_of "$HELLO_IMAGE")" --rm --log-uri "file://$said" || status=$?
    cat "$said"
    rm "$said"
    return "$status"
}

start_redis() {
    run_container "$scenario-redis" "$(image_of "$REDIS_IMAGE")" --detach >/dev/null
    eventually redis_answers
}

# redis ARGUMENT…: redis-cli, in the network of the container.
redis() {
    inside nsenter --net --target "$(process_of "$scenario-redis")" -- redis-cli "$@"
}

redis_answers() {
    [[ $(redis ping) == PONG ]]
}
