# shellcheck shell=bash
# The builder of debian.nix: copies the programs and libraries of $packages to $out, and makes what was built for
# /usr load from $libraries, which are store paths.
set -euo pipefail
shopt -s nullglob

mkdir "$out"
# shellcheck disable=SC2154,SC2086  # Nix passes its lists as words.
dpkg-query --listfiles $packages | while read -r file; do
    case $file in
        /usr/bin/* | /usr/sbin/*) folder=bin ;;
        /usr/lib/*-linux-gnu*/*.so | /usr/lib/*-linux-gnu*/*.so.*) folder=lib ;;
        *) continue ;;
    esac
    # Plug-ins in folders of their own stay behind: nothing here loads them.
    [[ ! -d $file && $file != /usr/lib/*-linux-gnu*/*/* ]] || continue
    mkdir -p "$out/$folder"
    cp --no-dereference --preserve=mode,links "$file" "$out/$folder/"
done

search=
loader=
# shellcheck disable=SC2154  # Nix sets it.
for library in $libraries; do
    search+=${search:+:}$library/lib
    for candidate in "$library"/lib/ld-*.so.*; do
        loader=$candidate
    done
done

# The C library comes with the loader itself and finds its own parts: it has no search path to set.
loaders=("$out"/lib/ld-*.so.*)
((${#loaders[@]} == 0)) || exit 0

for file in "$out"/bin/* "$out"/lib/*; do
    [[ ! -L $file && $(patchelf --print-needed "$file" 2>/dev/null) ]] || continue
    chmod u+w "$file"
    patchelf --set-rpath "$search" "$file"
    ! patchelf --print-interpreter "$file" >/dev/null 2>&1 || patchelf --set-interpreter "$loader" "$file"
done
