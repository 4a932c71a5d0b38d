# shellcheck shell=bash
# What the host must have. On Debian and Ubuntu as root it is installed; elsewhere the message says what to install.

# host_needs "NEED=PACKAGE…"…: NEED is a program on the PATH or an absolute path, each PACKAGE a Debian package that
# gives it.
host_needs() {
    local pair missing=() packages=() more
    for pair in "$@"; do
        if [[ ${pair%%=*} == /* ]]; then
            [[ -e ${pair%%=*} ]] && continue
        elif type -P "${pair%%=*}" >/dev/null; then
            continue
        fi
        missing+=("${pair%%=*}")
        read -ra more <<<"${pair#*=}"
        packages+=("${more[@]}")
    done
    ((${#missing[@]} == 0)) && return

    if ((EUID != 0)) || ! type -P apt-get >/dev/null; then
        die "missing: ${missing[*]}. Install them (the Debian packages are: ${packages[*]}) or enter 'nix develop'."
    fi
    note "installing ${packages[*]}"
    # The lists may be absent or stale, and fetching them takes long: only when the installation fails without.
    host_apt install "${packages[@]}" 2>/dev/null || { host_apt update && host_apt install "${packages[@]}"; } ||
        die "apt-get cannot install ${packages[*]}: install them by hand and try again."
}

host_apt() {
    local output
    output=$(DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "$@" 2>&1) || {
        printf '%s\n' "$output" | tail -n 5 >&2
        return 1
    }
}
