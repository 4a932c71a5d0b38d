# shellcheck shell=bash
# Counting tests and checks over several programs.

count_passed=0 count_failed=0 count_skipped=0

# count_tests LOG: adds the results that Rust's test harness printed. A test that prints "SKIPPED: <test>: <reason>"
# has returned early and is among the passed ones.
count_tests() {
    local passed failed ignored early
    read -r passed failed ignored < <(awk '
        /^test result:/ { passed += $4; failed += $6; ignored += $8 }
        END { print passed + 0, failed + 0, ignored + 0 }' "$1")
    early=$(grep --count 'SKIPPED: ' "$1" || true)
    count_add $((passed - early)) "$failed" $((ignored + early))
}

# count_add PASSED FAILED SKIPPED
count_add() {
    count_passed=$((count_passed + $1)) count_failed=$((count_failed + $2)) count_skipped=$((count_skipped + $3))
}

# count_line LOG: adds the counts that another script printed as its last line.
count_line() {
    local line
    line=$(tail -n 1 "$1")
    if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]]; then
        count_add "${BASH_REMATCH[@]:1}"
    else
        count_add 0 1 0
    fi
}

count_print() {
    printf '%d passed, %d failed, %d skipped\n' "$count_passed" "$count_failed" "$count_skipped"
}
