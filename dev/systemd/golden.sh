# shellcheck shell=bash
# Installing golden units with Debian's programs behind the names that they have for packages.

# What each name stands for: Debian packages, whose programs are in the folder bin of a prefix, as Nix has them.
declare -A golden_packages=(
    [bash]=bash
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
# … or what lies at a path: a generated file, and what the caller adds.
declare -A golden_paths=(
    [glibc-locales]=/usr
    [tzdata]=/usr
)
golden_prefixes=/opt/golden

# golden_install CONFIGURATION: puts its units to where systemd looks for an administrator's, unchanged but for the names.
golden_install() {
    local golden=$repo/tests/golden/$1 file
    [[ -d $golden ]] || die "there is no $golden: a configuration is a directory of golden files."
    mkdir -p "$golden_prefixes/files"
    while IFS= read -r file; do
        golden_paths[${file#files/}]=$golden_prefixes/$file
    done < <(cd "$golden" && find . -path './files/*' -prune -printf '%P\n')
    while IFS= read -r file; do
        case $file in
            files/*) golden_copy "$golden/$file" "$golden_prefixes/$file" ;;
            system/* | user/*) golden_copy "$golden/$file" "/etc/systemd/$file" ;;
            *) die "$golden/$file is in none of the folders system, user and files." ;;
        esac
    done < <(cd "$golden" && find . -type f -printf '%P\n')
}

# golden_copy GOLDEN FILE: writes FILE, with paths in the place of names.
golden_copy() {
    local golden=$1 file=$2 text name path
    text=$(<"$golden")
    while read -r name; do
        golden_path "$name" || die "$golden names @$name@, for which dev/systemd/golden.sh has nothing: add it there."
        text=${text//"@$name@"/$path}
    done < <(grep --only-matching --perl-regexp '@\K[a-z][a-z0-9._+-]*(?=@)' "$golden" | sort -u)
    mkdir -p "${file%/*}"
    printf '%s\n' "$text" >"$file"
    # A program is what has a shebang.
    [[ $text != '#!'* ]] || chmod +x "$file"
}

# golden_path NAME: sets path, and makes what is there the first time.
golden_path() {
    local name=$1 package
    path=${golden_paths[$name]-}
    [[ -z $path ]] || return 0
    [[ -n ${golden_packages[$name]-} ]] || return 1
    path=$golden_prefixes/$name
    golden_paths[$name]=$path
    mkdir -p "$path/bin"
    # shellcheck disable=SC2086  # One package a word.
    dpkg-query --listfiles ${golden_packages[$name]} | grep -E '^(/usr)?/(s?bin|lib/cni)/[^/]+$' |
        xargs --no-run-if-empty ln --symbolic --force --target-directory="$path/bin"
    # Names that Debian's alternatives give: iptables for one is iptables-nft.
    find /usr/bin /usr/sbin -lname '/etc/alternatives/*' | while read -r package; do
        [[ ! -e $path/bin/$(basename "$(realpath "$package")") ]] || ln --symbolic --force "$package" "$path/bin/"
    done
}
