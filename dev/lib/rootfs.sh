# shellcheck shell=bash
# The root file system of a suite, made once:
#
#   build/sandbox/SUITE/lock          shared by every instance that uses the tree, exclusive while it is made
#   build/sandbox/SUITE/tree/rootfs   the root file system
#   build/sandbox/SUITE/tree/nix      its /nix, which each instance gets a copy of
#   build/sandbox/SUITE/tree/stamp    a digest of everything the tree is made from
#   build/sandbox/SUITE/instance/     the instance that `dev/sandbox join` shares
#
# On a machine that has the tools, SUITE is "host" and fixtures/ takes the place of the tree.

sandbox_packages=(
    apache2-utils
    busybox-static
    ca-certificates
    containerd
    containernetworking-plugins
    dbus
    docker-cli
    docker-registry
    docker.io
    e2fsprogs
    fuse-overlayfs
    fuse3
    golang-github-opencontainers-image-spec-dev
    hello
    iproute2
    iptables
    jq
    kmod
    libpam-systemd
    mount
    nftables
    nix-bin
    nix-setup-systemd
    patchelf
    procps
    redis-server
    redis-tools
    rootlesskit
    runc
    skopeo
    slirp4netns
    systemd
    uidmap
    umoci
)
sandbox_suites=(trixie forky)
sandbox_mirror=${MIRROR:-http://deb.debian.org/debian}

# What the host's own containerd and Nix must be at least to be used instead of a made root file system.
sandbox_containerd_at_least=1.7
sandbox_nix_at_least=2.18

# sandbox_prepare: decides which tools are used, makes what is missing, and holds the shared lock for this shell's life.
# Sets tree (empty when the host's tools are used), state (the directory of locks) and fixtures.
sandbox_prepare() {
    need_root dev/sandbox
    host_needs flock=util-linux unshare=util-linux nsenter=util-linux setpriv=util-linux mount=mount
    sandbox_place
    # A made root has its own.
    [[ -n $tree ]] || host_needs ip=iproute2
    mkdir -p "$state"
    exec {sandbox_lock}<>"$state/lock"
    flock --shared "$sandbox_lock"
    sandbox_is_made && return
    # An upgrade is no single step: another may make the tree in between, hence the second look.
    flock --nonblock "$sandbox_lock" || {
        note "waiting for the other users of $state"
        flock "$sandbox_lock"
    }
    if ! sandbox_is_made; then
        if [[ -n $tree ]]; then
            sandbox_make_tree
        else
            "$repo/dev/store/build" "$fixtures"
            sandbox_stamp >"$state/stamp"
        fi
    fi
    flock --shared "$sandbox_lock"
}

# sandbox_place: sets tree, state and fixtures without making anything.
sandbox_place() {
    local suite=${SUITE:-trixie}
    [[ " ${sandbox_suites[*]} " == *" $suite "* ]] ||
        die "SUITE=$suite is not one of: ${sandbox_suites[*]}."
    if sandbox_uses_host_tools; then
        state=$build/sandbox/host tree='' fixtures=$build/sandbox/host/fixtures
    else
        state=$build/sandbox/$suite tree=$build/sandbox/$suite/tree fixtures=/nix/var/nix/gcroots/fixtures
    fi
}

# SANDBOX=always makes a root file system, never insists on the host's tools, auto (the default) prefers those.
sandbox_uses_host_tools() {
    local tool version
    case ${SANDBOX:-auto} in
        always) return 1 ;;
        auto | never) ;;
        *) die "SANDBOX=$SANDBOX is not one of: auto, always, never." ;;
    esac
    for tool in containerd ctr runc nix-store; do
        type -P "$tool" >/dev/null || { sandbox_refuse "$tool is not on the PATH" && return 1; }
    done
    version=$(containerd --version | grep --only-matching --extended-regexp '[0-9]+\.[0-9]+\.[0-9]+' | head -n 1)
    at_least "$version" "$sandbox_containerd_at_least" ||
        { sandbox_refuse "containerd is $version and must be $sandbox_containerd_at_least or newer" && return 1; }
    version=$(nix-store --version | grep --only-matching --extended-regexp '[0-9]+\.[0-9.]+' | head -n 1)
    at_least "$version" "$sandbox_nix_at_least" ||
        { sandbox_refuse "nix is $version and must be $sandbox_nix_at_least or newer" && return 1; }
}

sandbox_refuse() {
    [[ ${SANDBOX:-auto} != never ]] || die "SANDBOX=never, but $1."
}

sandbox_is_made() {
    if [[ -n $tree ]]; then
        [[ -e $tree/stamp && $(<"$tree/stamp") == "$(sandbox_stamp)" ]]
    else
        # -e follows the link: a root whose path has gone is no fixture.
        [[ -e $state/stamp && $(<"$state/stamp") == "$(sandbox_stamp)" && -e $fixtures/hello && -e $fixtures/redis ]]
    fi
}

# Of the mirror, of this file and of all that dev/store/build reads.
sandbox_stamp() {
    local store=$repo/dev/store
    {
        echo "$sandbox_mirror"
        cat "$repo/dev/lib/rootfs.sh" "$store"/{build,source.sh,graph,default.nix,debian.nix,nixpkgs.nix} \
            "$store"/{repackage.sh,closure-info.nix,closure-info.sh}
    } | sha256sum | cut -d ' ' -f 1
}

# In a temporary directory, renamed when whole. The caller holds the exclusive lock.
sandbox_make_tree() {
    local whole=$tree
    tree=$state/tree.new
    host_needs mmdebstrap=mmdebstrap /usr/share/keyrings/debian-archive-keyring.gpg=debian-archive-keyring
    note "making the root file system of ${state##*/}, once: a minute or two"
    rm -rf --one-file-system "$tree"
    mkdir -p "$tree"
    sandbox_bootstrap "$tree/rootfs" || die "mmdebstrap cannot make ${state##*/} from $sandbox_mirror."
    sandbox_configure
    note "putting Debian's hello and redis into its Nix store"
    instance_run private in-place "$repo/dev/store/build" "$fixtures" || die "the store content cannot be built."
    sandbox_stamp >"$tree/stamp"
    rm -rf --one-file-system "$whole"
    mv -T "$tree" "$whole"
    tree=$whole
}

# Its own namespaces: whatever mmdebstrap mounts and starts ends with it.
sandbox_bootstrap() {
    # As PID 1 it takes no SIGTERM.
    local IFS=, supervise_grace=0
    # A mirror may lag behind the day on which a testing suite's Release file expires.
    supervise child unshare --mount --pid --fork --kill-child --mount-proc mmdebstrap \
        --quiet --variant=essential --include="${sandbox_packages[*]}" \
        --keyring=/usr/share/keyrings \
        --aptopt='Acquire::Check-Valid-Until "false"' \
        --aptopt='Acquire::Languages "none"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        "${state##*/}" "$1" "$sandbox_mirror"
}

sandbox_configure() {
    mkdir -p "$tree/nix" "$tree/rootfs/nix" "$tree/rootfs/etc/nix" "$tree/rootfs/var/lib/containerd"
    # One user, no build sandbox: the builders read the Debian packages. No substituter: there is no network.
    cat >"$tree/rootfs/etc/nix/nix.conf" <<'CONF'
build-users-group =
sandbox = false
substituters =
CONF
    cat >"$tree/rootfs/etc/hosts" <<'HOSTS'
127.0.0.1 localhost nix-snapshotter
::1 localhost
HOSTS
}
