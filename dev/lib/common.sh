# shellcheck shell=bash
# What every script under dev/ shares: where things lie, and how to speak to the person at the terminal.

# The physical path: the sandbox shows the repository at this same path.
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
# shellcheck disable=SC2034  # Used by the scripts that source this file.
build=$repo/build

# Progress goes to stderr, so that a command's own output stays clean.
note() { printf '%s\n' "$*" >&2; }

die() {
    note "error: $*"
    exit 1
}

# need_root WHAT: the namespaces and mounts of the sandbox need it.
need_root() {
    ((EUID == 0)) || die "$1 needs root, for mounts and namespaces: run it with sudo or in a root shell."
}

# at_least HAVE WANT: compares dotted versions.
at_least() {
    [[ $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]
}
