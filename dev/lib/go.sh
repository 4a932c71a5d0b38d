# shellcheck shell=bash
# Programs in Go that tests need, built as tests/tools/go.mod and go.sum pin them:
#
#   build/tools/lock    held while they are built
#   build/tools/stamp   a digest of what they were built from
#   build/tools/NAME    the programs

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

# go_find: sets go, a Go that is new enough.
go_find() {
    local wanted version
    go=$(type -P go || true)
    [[ -n $go || ! -x /usr/local/go/bin/go ]] || go=/usr/local/go/bin/go
    if [[ -z $go ]]; then
        go_refusal="there is no Go on the PATH"
        return 1
    fi
    wanted=$(sed -n 's/^go //p' "$go_module/go.mod")
    version=$("$go" env GOVERSION)
    if ! at_least "${version#go}" "$wanted"; then
        go_refusal="Go is ${version#go} and must be $wanted or newer"
        return 1
    fi
}

# go_run ARGUMENT…: exactly what is pinned, with the Go that is there.
go_run() (
    cd "$go_module" || exit
    CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false' GOTOOLCHAIN=local GOWORK=off "$go" "$@"
)
