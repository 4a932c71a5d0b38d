# shellcheck shell=bash
# Evaluating the Nix files. For scripts that have sourced common.sh.
#
#   build/nixpkgs   a copy of a partial nixpkgs, or of any for the sandbox, which sees nothing else of the machine
#   build/flake     a copy of the repository without what git ignores, which Nix copies to its store

# What nixpkgs' own modules take from scope, and a partial nixpkgs knows only when they write `pkgs.NAME`.
nix_names=(cfssl conntrack-tools deadnix ethtool gitMinimal openssh openssl socat thin-provisioning-tools)
nix_at_least=2.18

nix_on_host() {
    local version
    type -P nix >/dev/null && version=$(nix --version) && at_least "${version##* }" "$nix_at_least"
}

# nix_run COMMAND…: with the Nix of the machine where it is new enough, or else that of a sandbox.
nix_run() {
    local command=(env NIX_CONFIG='extra-experimental-features = nix-command flakes')
    [[ -z ${nixpkgs-} ]] || command+=(NIX_PATH="nixpkgs=$nixpkgs:home-manager=$home_manager")
    nix_on_host || command=("$repo/dev/sandbox" run "${command[@]}")
    SUITE=forky "${command[@]}" "$@"
}

# nix_find: sets nixpkgs, a directory to evaluate with, home_manager, and inputs, the flags by which the flake uses them.
# The first of NIXPKGS, the inputs that flake.lock pins, <nixpkgs>, and a partial nixpkgs, with which nothing can be
# built. Fails where there is none.
nix_find() {
    local candidate
    nixpkgs='' home_manager='' inputs=()
    [[ -z ${NIXPKGS-} || -e $NIXPKGS/lib/default.nix ]] ||
        die "NIXPKGS is $NIXPKGS, which is no nixpkgs: there is no lib/default.nix in it. Name another directory, or none."
    if [[ -z ${NIXPKGS-} ]] && nix_on_host && nix_pinned; then
        return
    fi
    for candidate in "${NIXPKGS-}" "$(nix_of_search_path)" "${XDG_CACHE_HOME:-$HOME/.cache}/nixpkgs-partial"; do
        if [[ -n $candidate && -e $candidate/lib/default.nix ]]; then
            nix_use "$candidate"
            return
        fi
    done
    return 1
}

nix_pinned() {
    local of_lock='(builtins.getFlake "git+file://'$repo'").inputs' found
    found=$(nix_run nix eval --raw --impure --expr "with $of_lock; \"\${nixpkgs} \${home-manager}\"" 2>/dev/null) || return
    read -r nixpkgs home_manager <<<"$found"
    note "evaluating with the inputs of flake.lock"
}

nix_of_search_path() {
    ! nix_on_host || nix-instantiate --find-file nixpkgs 2>/dev/null || true
}

nix_use() {
    nixpkgs=$1
    note "evaluating with $nixpkgs"
    if [[ -e $nixpkgs/names.txt ]] || ! nix_on_host; then
        rm -rf --one-file-system "$build/nixpkgs"
        mkdir -p "$build/nixpkgs"
        cp --archive "$nixpkgs/." "$build/nixpkgs"
        nixpkgs=$build/nixpkgs
    fi
    if [[ -e $nixpkgs/names.txt ]]; then
        printf '%s\n' "${nix_names[@]}" | sort --unique --output="$nixpkgs/names.txt" - "$nixpkgs/names.txt"
    fi
    inputs=(--override-input nixpkgs "path:$nixpkgs")
    if [[ -e $nixpkgs/home-manager/modules ]]; then
        home_manager=$nixpkgs/home-manager
        inputs+=(--override-input home-manager "path:$home_manager")
    fi
}

# nix_copy_flake: what the flake is made of, tracked by git or not yet.
nix_copy_flake() {
    rm -rf --one-file-system "$build/flake"
    mkdir -p "$build/flake"
    # A file that is deleted and not yet removed from the index is no part of it.
    git -C "$repo" ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do [[ ! -e $repo/$file ]] || printf '%s\0' "$file"; done |
        tar --create --directory="$repo" --null --files-from=- |
        tar --extract --directory="$build/flake"
}
