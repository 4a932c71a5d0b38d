# shellcheck shell=bash
# Doing what a page of docs/ says, from its top to its end. A block below `<!-- PATH -->` is a file, one below
# `<!-- run -->` has commands for root in the directory of the repository. A file below `<!-- PATH, containerd 1.7 -->` is
# for that version, in place of the one before it.

# page_blocks PAGE: prints the first line, the last line and the comment of each such block.
page_blocks() {
    awk '
        /^<!-- .* -->$/ { comment = substr($0, 6, length($0) - 9); next }
        /^```/ && first { print first, NR - 1, comment; first = 0; comment = ""; next }
        /^```/ && comment != "" { first = NR + 1; next }
        !first { comment = "" }' "$1"
}

# page_follow PAGE: as it is named from the repository.
page_follow() {
    local page=$repo/$1 first last comment file
    while read -r first last comment; do
        case $comment in
            run)
                (cd "$repo" && bash -euo pipefail -c "$(sed --quiet "$first,${last}p" "$page")" </dev/null) ||
                    die "a command fails that $1 has in its lines $first to $last."
                ;;
            /*)
                file=${comment%, containerd 1.7}
                [[ $file == "$comment" ]] || ! containerd_is_2 || continue
                mkdir -p "${file%/*}"
                sed --quiet "$first,${last}p" "$page" >"$file"
                ;;
        esac
    done < <(page_blocks "$page")
}

# What golden units have for NixOS alone, and where other distributions have what they name.
page_expressions=(
    '/^Environment="\(LOCALE_ARCHIVE\|TZDIR\)=/d'
    's|^Environment="PATH=.*|Environment="PATH=/nix/var/nix/profiles/default/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"|'
    's| --config @nix-snapshotter.toml@||'
    's|@nix-snapshotter@/bin|/usr/local/bin|'
    's|@nix-image-\([a-z]*\).tar@|/srv/images/\1.tar|g'
    's|@cni-plugins@/bin|/usr/lib/cni|'
)

# page_is_golden FILE GOLDEN [SED-EXPRESSION…]: whether a file has the lines of a golden one, in whatever order.
page_is_golden() {
    local file=$1 golden=$repo/tests/golden/$2 expressions=() expression
    shift 2
    for expression in "$@" "${page_expressions[@]}"; do
        expressions+=(--expression "$expression")
    done
    if diff <(sed "${expressions[@]}" "$golden" | grep . | sort) <(grep . "$file" | sort) >&2; then
        echo "test page::${file##*/} ... ok"
    else
        note "lines that are ${golden#"$repo/"}'s alone, and lines that are the page's alone"
        echo "test page::${file##*/} ... FAILED"
        return 1
    fi
}

# page_is_of_the_modules: prints results as Rust's test harness does.
page_is_of_the_modules() {
    local failed=0 containerd=containerd-1.7.toml
    ! containerd_is_2 || containerd=containerd.toml
    page_is_golden /etc/systemd/system/nix-snapshotter.service package/system/nix-snapshotter.service || ((failed += 1))
    page_is_golden /etc/systemd/system/preload-containerd.service rootful/system/preload-containerd.service \
        '/^Environment="PATH=/d' || ((failed += 1))
    page_is_golden /etc/containerd/config.toml "rootful/files/$containerd" || ((failed += 1))
    echo "test result: $( ((failed == 0)) && echo ok || echo FAILED). $((3 - failed)) passed; $failed failed; 0 ignored"
    ((failed == 0))
}
