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

# count_line LOG STATUS: adds the counts that another script printed, and a failure when it ended with STATUS without
# having counted one.
count_line() {
    local passed failed skipped
    read -r passed failed skipped < <(sed -nE \
        's/^([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p' "$1" | tail -n 1) || passed=0 failed=1 skipped=0
    ((failed > 0 || $2 == 0)) || failed=1
    count_add "$passed" "$failed" "$skipped"
}

# count_failures LOG: what the log says of each failure: the words of Rust's test harness, or the lines about that of
# another program.
count_failures() {
    awk '
        /^running [0-9]+ tests?$/ { harness = 1 }
        /^test result: / { harness = words = 0 }
        harness && /^failures:$/ { words = 1 }
        words { print; next }
        after > 0 { print; after--; next }
        !harness && (/ \.\.\. FAILED$/ || /^FAILED /) {
            for (number = NR - about; number < NR; number++) if (number in line) print line[number]
            print
            after = about
        }
        { line[NR] = $0; delete line[NR - about] }' about=40 "$1"
}

count_print() {
    printf '%d passed, %d failed, %d skipped\n' "$count_passed" "$count_failed" "$count_skipped"
}
