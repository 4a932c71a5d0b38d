# shellcheck shell=bash
# Programs in Go that tests need, built as tests/tools/go.mod and go.sum pin them:
#
#   build/tools/lock    held while they are built
#   build/tools/stamp   a digest of what they were built from
#   build/tools/NAME    the programs
#   build/tools/go      Debian's Go, where the PATH has none that is new enough

go_module=$repo/tests/tools
go_built=$build/tools

# go_tools: builds what is not built yet. Where that cannot be, it fails and sets go_refusal.
go_tools() {
    local stamp lock status=0
    go_refusal=
    mkdir -p "$go_built"
    stamp=$(cat "$repo/dev/lib/go.sh" "$go_module"/go.{mod,sum} | sha256sum | cut -d ' ' -f 1)
    exec {lock}<>"$go_built/lock"
    flock "$lock"
    go_is_built "$stamp" || go_build "$stamp" || status=$?
    exec {lock}>&-
    return "$status"
}

go_is_built() {
    [[ -e $go_built/stamp && $(<"$go_built/stamp") == "$1" ]]
}

# go_build STAMP: what cannot be had is a refusal; what does not compile ends the script.
go_build() {
    local tools
    go_find || return
    note "downloading the modules of kubelet and crictl"
    if ! go_run mod download; then
        go_refusal="the Go modules cannot be downloaded"
        return 1
    fi
    note "building kubelet and crictl, once: some minutes"
    mapfile -t tools < <(go_run list -f '{{if eq .Name "main"}}{{.ImportPath}}{{end}}' tool)
    rm -f "$go_built/stamp"
    go_run build -trimpath -ldflags='-s -w' -o "$go_built/" "${tools[@]}" || die "kubelet and crictl do not compile."
    echo "$1" >"$go_built/stamp"
}

# go_find: sets go, a Go that is new enough: of the PATH, or of Debian.
go_find() {
    local wanted
    wanted=$(sed -n 's/^go //p' "$go_module/go.mod")
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

# go_run ARGUMENT…: exactly what is pinned, with the Go that is there.
go_run() (
    cd "$go_module" || exit
    CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false' GOTOOLCHAIN=local GOWORK=off "$go" "$@"
)
