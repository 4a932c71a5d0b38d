# shellcheck shell=bash
# Sets source, the arguments by which the expressions here take Debian's programs, or none where there are none.

source=()
if dpkg-query --show busybox-static hello redis-server redis-tools patchelf jq >/dev/null 2>&1; then
    source=(--argstr graph "$("$here/graph")")
fi
