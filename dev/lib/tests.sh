# shellcheck shell=bash
# Building the tests, running them where they belong, and counting their results. For scripts that have sourced
# common.sh, host.sh, cargo.sh and count.sh.

logs=$build/test

# Tells dev/sandbox the suite, which "host" has no need of.
use_suite() {
    [[ $1 == host ]] || export SUITE=$1
}

# suites_prepare [SUITE…]: sets suites, both unless some are given, and makes what lacks of them.
suites_prepare() {
    local suite
    suites=("$@")
    if [[ $("$repo/dev/sandbox" where) == host ]]; then
        suites=(host)
    elif ((${#suites[@]} == 0)); then
        suites=(trixie forky)
    fi
    for suite in "${suites[@]}"; do
        use_suite "$suite"
        "$repo/dev/sandbox" make
    done
    mkdir -p "$logs"
}

# run NAME COMMAND…: shows and keeps the output of tests, and counts them.
run() {
    run_counted count_tests "$@"
}

# run_counted COUNT NAME COMMAND…: COUNT is called with the log and the status.
run_counted() {
    local count=$1 name=$2 failed=$count_failed status=0
    shift 2
    note "== $name"
    "$@" 2>&1 | tee "$logs/$name.log" || status=$?
    "$count" "$logs/$name.log" "$status"
    # A program that does not build, or dies, has said nothing of what failed.
    if ((status != 0 && count_failed == failed)); then
        note "$name failed with status $status"
        ((count_failed += 1))
    fi
}

programs_build() {
    note "== building the programs"
    cargo build --release --locked --package nix-snapshotter --package nix2container
}

# end_to_end_build TARGET: sets programs, of one directory below rust/crates/e2e/tests.
end_to_end_build() {
    local target=$1
    programs_build
    note "== building the end-to-end tests"
    # Cargo says which of the programs it made are tests: those whose profile is the one for tests.
    mapfile -t programs < <(cargo test --release --locked --package e2e --test "$target" --no-run \
        --message-format=json |
        grep --extended-regexp '"profile":\{[^}]*"test":true' | sed --quiet 's/.*"executable":"\([^"]*\)".*/\1/p')
    ((${#programs[@]} > 0)) || die "cargo has built no end-to-end tests."
}

# run_program SUITE PROGRAM ARGUMENT…: a program of the end-to-end tests, in an instance of its own.
run_program() {
    local suite=$1 program=$2
    shift 2
    use_suite "$suite"
    run "$suite-$(basename "${program%-*}")" "$repo/dev/sandbox" run env \
        NIX_SNAPSHOTTER_BIN="$build/target/release/nix-snapshotter" \
        NIX2CONTAINER_BIN="$build/target/release/nix2container" \
        RUST_TEST_THREADS="${RUST_TEST_THREADS:-1}" \
        "$program" "$@"
}

# skip_all NAME REASON: ends the script, with all of it counted as one that is skipped.
skip_all() {
    printf 'SKIPPED: %s: %s\n' "$1" "$2"
    count_add 0 0 1
    count_print
    exit 0
}

# finish: prints the counts, and fails when a test has, or when there was none.
finish() {
    count_print
    ((count_passed + count_failed + count_skipped > 0)) || die "no test has ${FILTER-} in its name."
    ((count_failed == 0))
}
