# shellcheck shell=bash
# Programs in Go that tests need: the tools of modules below tests/, built as their go.mod and go.sum pin them.
#
#   build/tools/lock          held while they are built
#   build/tools/MODULE.stamp  a digest of what those of a module were built from
#   build/tools/NAME          the programs
#   build/tools/go            Debian's Go, where the PATH has none that is new enough

go_built=$build/tools

# go_tools MODULE: builds the tools of tests/MODULE, unless they are. Where that cannot be, it fails and sets go_refusal.
go_tools() {
    local module=$1 stamp lock status=0
    go_refusal=
    mkdir -p "$go_built"
    stamp=$(cat "$repo/dev/lib/go.sh" "$repo/tests/$module"/go.{mod,sum} | sha256sum | cut -d ' ' -f 1)
    exec {lock}<>"$go_built/lock"
    flock "$lock"
    go_is_built "$(go_stamp "$module")" "$stamp" || go_build "$module" "$stamp" || status=$?
    exec {lock}>&-
    return "$status"
}

go_stamp() {
    printf '%s\n' "$go_built/$(basename "$1").stamp"
}

go_is_built() {
    [[ -e $1 && $(<"$1") == "$2" ]]
}

# go_build MODULE STAMP: what cannot be had is a refusal; what does not compile ends the script.
go_build() {
    local module=$1 stamp=$2 tools
    go_find "$module" || return
    note "downloading what the tools of tests/$module are made of"
    # Their dependencies, too, so that nothing is left to be downloaded.
    if ! tools=$(go_run "$module" list -deps -f '{{if eq .Name "main"}}{{.ImportPath}}{{end}}' tool); then
        go_refusal="the Go modules of tests/$module cannot be downloaded"
        return 1
    fi
    note "building ${tools//$'\n'/, }, once: some minutes"
    rm -f "$(go_stamp "$module")"
    # shellcheck disable=SC2086  # One word each.
    go_run "$module" build -trimpath -ldflags='-s -w' -o "$go_built/" $tools ||
        die "the tools of tests/$module do not compile."
    echo "$stamp" >"$(go_stamp "$module")"
}

# go_find MODULE: sets go, a Go that is new enough: of the PATH, or of Debian.
go_find() {
    local wanted
    wanted=$(sed -n 's/^go //p' "$repo/tests/$1/go.mod")
    for go in "$(type -P go || true)" /usr/local/go/bin/go; do
        if go_is_at_least "$wanted"; then
            return
        fi
    done
    go=$go_built/go/usr/lib/go-1.24/bin/go
    go_is_at_least "$wanted" || go_fetch || return
    if ! go_is_at_least "$wanted"; then
        go_refusal="there is no Go of $wanted or newer on the PATH, nor in Debian trixie"
        return 1
    fi
}

go_is_at_least() {
    local version
    [[ -x $go ]] && version=$("$go" env GOVERSION) && at_least "${version#go}" "$1"
}

# go_fetch: unpacks the Go of trixie, whose programs are static and find their library by where they are.
go_fetch() {
    go_refusal="there is no Go on the PATH that is new enough, and Debian's cannot be fetched, for which root and a mirror are needed"
    ((EUID == 0)) || return
    host_needs mmdebstrap=mmdebstrap /usr/share/keyrings/debian-archive-keyring.gpg=debian-archive-keyring
    note "fetching Debian's Go, once"
    rm -rf --one-file-system "$go_built/go"
    mmdebstrap --quiet --variant=extract --include=golang-1.24-go,golang-1.24-src \
        --keyring=/usr/share/keyrings --aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/doc/*' \
        trixie "$go_built/go" "${MIRROR:-http://deb.debian.org/debian}" >&2
}

# go_run MODULE ARGUMENT…: exactly what is pinned, with the Go that is there.
go_run() (
    cd "$repo/tests/$1" || exit
    shift
    CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false' GOTOOLCHAIN=local GOWORK=off "$go" "$@"
)
