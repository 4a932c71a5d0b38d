# shellcheck shell=bash
# The builder of closure-info.nix.
set -euo pipefail

# shellcheck source=/dev/null
source "$NIX_ATTRS_SH_FILE"
# shellcheck disable=SC2154  # Set by the file above.
out=${outputs[out]}
closure() {
    jq --raw-output ".closure | sort_by(.path) | $1" "$NIX_ATTRS_JSON_FILE"
}

mkdir "$out"
closure '.[].path' >"$out/store-paths"
closure 'map(.narSize) | add' >"$out/total-nar-size"
# Path, hash, size, deriver (none), the number of references, the references: a line each.
closure '.[] | .path, .narHash, .narSize, "", (.references | length), .references[]' >"$out/registration"
