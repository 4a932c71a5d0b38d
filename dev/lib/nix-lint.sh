# shellcheck shell=bash
# The programs that format and lint .nix files: from the PATH, or else in these versions from crates.io, built once into
# build/tools/nix-lint/bin. For scripts that have sourced common.sh.

nix_lint_versions=(nixpkgs-fmt=1.3.0 deadnix=1.3.1)
nix_lint_built=$build/tools/nix-lint

# nix_lint_tools: sets nixpkgs_fmt and deadnix, the paths of the programs.
nix_lint_tools() {
    local pinned name path lock
    mkdir -p "$nix_lint_built"
    exec {lock}<>"$nix_lint_built/lock"
    flock "$lock"
    for pinned in "${nix_lint_versions[@]}"; do
        name=${pinned%=*}
        path=$(type -P "$name" || true)
        if [[ -z $path ]]; then
            path=$nix_lint_built/bin/$name
            nix_lint_build "$name" "${pinned#*=}"
        fi
        printf -v "${name//-/_}" %s "$path"
    done
    exec {lock}>&-
}

# nix_lint_build NAME VERSION. Cargo keeps a list of what it has installed there, and in which version.
nix_lint_build() {
    [[ -x $nix_lint_built/bin/$1 ]] || note "building $1 $2, once: half a minute"
    cargo install --quiet --locked --root "$nix_lint_built" --target-dir "$nix_lint_built/target" --version "$2" "$1" ||
        die "cargo cannot install $1 $2: install it by hand and try again."
    rm -rf "$nix_lint_built/target"
}

# nix_files: prints those that belong to the repository, tracked or not yet.
nix_files() {
    local file
    git -C "$repo" ls-files --cached --others --exclude-standard -- '*.nix' | while IFS= read -r file; do
        [[ ! -e $repo/$file ]] || printf '%s\n' "$file"
    done
}

# nix_parse FILE…: all of them, whatever is wrong with the first. For scripts that have sourced nix.sh, too.
nix_parse() {
    # shellcheck disable=SC2016  # The inner shell expands it.
    nix_run bash -c '
        status=0
        for file; do
            nix-instantiate --parse "$file" >/dev/null || status=1
        done
        exit "$status"' sh "$@"
}
