# shellcheck shell=bash
# Installing golden files with Debian's programs behind the names that stand in them for packages.

# What a name stands for: Debian packages, whose programs are in the folder bin of a prefix, as Nix has them.
declare -A golden_packages=(
    [cni-plugins]=containernetworking-plugins
    [containerd]=containerd
    [coreutils]=coreutils
    [findutils]=findutils
    [gnugrep]=grep
    [gnused]=sed
    [iproute2]=iproute2
    [iptables]=iptables
    [kmod]=kmod
    [nix]=nix-bin
    [procps]=procps
    [rootlesskit]=rootlesskit
    [runc]=runc
    [slirp4netns]=slirp4netns
    [systemd]=systemd
    [util-linux]='util-linux mount'
)
# … or a path: of the generated files, and of what the caller adds.
declare -A golden_paths=(
    [glibc-locales]=/usr
    [tzdata]=/usr
)
golden_prefixes=/opt/golden

containerd_is_2() {
    at_least "$(containerd --version | grep --only-matching --extended-regexp '[0-9]+\.[0-9]+' | head -n 1)" 2.0
}

# golden_install CONFIGURATION…: puts units to where systemd looks for an administrator's, unchanged but for the names,
# and everything else to where tests/modules/golden.nix says that it is. Sets golden_units. What a later configuration
# has takes the place of what an earlier one has under the same name.
golden_install() {
    local name file
    declare -gA golden_units=()
    local -A sources=()
    for name in "$@"; do
        [[ -d $repo/tests/golden/$name ]] ||
            die "there is no configuration $name: it is one of $(cd "$repo/tests/golden" && echo *)."
        while IFS= read -r file; do
            sources[$file]=$repo/tests/golden/$name/$file
        done < <(cd "$repo/tests/golden/$name" && find . -type f -printf '%P\n')
    done
    # nixpkgs has one version of containerd, and the modules write its file for that.
    if [[ -v sources[files/containerd-1.7.toml] ]]; then
        containerd_is_2 || sources[files/containerd.toml]=${sources[files/containerd-1.7.toml]}
        unset 'sources[files/containerd-1.7.toml]'
    fi
    for file in "${!sources[@]}"; do
        [[ $file != files/* ]] || golden_place "${file#files/}" "${sources[$file]}"
    done
    for file in "${!sources[@]}"; do
        case $file in
            files/*) golden_write "${sources[$file]}" "${golden_places[${file#files/}]}" ;;
            system/* | user/*)
                golden_write "${sources[$file]}" "/etc/systemd/$file"
                golden_units[$(basename "$file")]=${file%%/*}
                ;;
            links) golden_link "${sources[$file]}" ;;
            packages) golden_link_programs "${sources[$file]}" ;;
            profile) golden_write "${sources[$file]}" /etc/profile.d/golden.sh ;;
            tmpfiles.conf)
                golden_write "${sources[$file]}" /etc/tmpfiles.d/golden.conf
                systemd-tmpfiles --create /etc/tmpfiles.d/golden.conf
                ;;
            *) die "${sources[$file]} is nothing that dev/systemd/golden.sh knows: say there where it goes." ;;
        esac
    done
}

golden_link() {
    local golden=$1 line lines
    mapfile -t lines <"$golden"
    for line in "${lines[@]}"; do
        golden_named "${line#* }" "$golden"
        line=${line% *}
        mkdir -p "${line%/*}"
        ln --symbolic --force "$path" "$line"
    done
}

golden_link_programs() {
    local golden=$1 package packages
    mapfile -t packages <"$golden"
    for package in "${packages[@]}"; do
        golden_named "$package" "$golden"
        ln --symbolic --force --target-directory=/usr/local/bin "$path"/bin/*
    done
}

# golden_place NAME GOLDEN: decides where a generated file goes. A program is a package of its own.
declare -A golden_places=()
golden_place() {
    local name=$1 golden=$2
    if [[ $(head -c 2 "$golden") == '#!' ]]; then
        golden_paths[$name]=$golden_prefixes/$name
        golden_places[$name]=$golden_prefixes/$name/bin/$name
    else
        golden_paths[$name]=$golden_prefixes/files/$name
        golden_places[$name]=$golden_prefixes/files/$name
    fi
}

# golden_write GOLDEN FILE: with paths in the place of names.
golden_write() {
    local golden=$1 file=$2 text name path
    # A unit's PATH need not have bash: what Nix builds names it by its path, which golden files leave out.
    text=$(sed '1s|^#!/usr/bin/env bash$|#!/usr/bin/bash|' "$golden")
    while read -r name; do
        golden_named "@$name@" "$golden"
        text=${text//"@$name@"/$path}
    done < <(grep --only-matching --perl-regexp '@\K[a-z][a-z0-9._+-]*(?=@)' "$golden" | sort --unique)
    mkdir -p "${file%/*}"
    printf '%s\n' "$text" >"$file"
    [[ $text != '#!'* ]] || chmod +x "$file"
}

# golden_named @NAME@ GOLDEN: sets path to what a name stands for in a golden file.
golden_named() {
    local name=${1//@/}
    golden_path "$name" ||
        die "${2#"$repo/"} names @$name@, for which dev/systemd/golden.sh has no program: add it there."
}

# golden_path NAME: sets path, and makes what is there.
golden_path() {
    local name=$1 program
    path=${golden_paths[$name]-}
    [[ -z $path ]] || return 0
    [[ -n ${golden_packages[$name]-} ]] || return 1
    path=$golden_prefixes/$name
    golden_paths[$name]=$path
    mkdir -p "$path/bin"
    # shellcheck disable=SC2086  # One package a word.
    dpkg-query --listfiles ${golden_packages[$name]} | grep -E '^(/usr)?/(s?bin|lib/cni)/[^/]+$' |
        xargs ln --symbolic --force --target-directory="$path/bin"
    # Names that Debian's alternatives give: iptables is one for iptables-nft.
    find /usr/bin /usr/sbin -lname '/etc/alternatives/*' | while read -r program; do
        [[ ! -e $path/bin/$(basename "$(realpath "$program")") ]] || ln --symbolic --force "$program" "$path/bin/"
    done
}
