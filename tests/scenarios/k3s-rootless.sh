#!/usr/bin/env bash
# The daemon of a user's k3s serves where k3s' containerd looks for it, and comes back with k3s. What k3s' containerd is
# told of it goes with the configuration.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

files=/tmp/scenario-$scenario
snapshotter_socket=$runtime/k3s/containerd/nix-snapshotter/nix-snapshotter.sock
export CONTAINERD_ADDRESS=$runtime/k3s/containerd/containerd.sock CONTAINERD_SNAPSHOTTER=nix-snapshotter

tidy() {
    rm -rf "$files"
}

inside() {
    as_owner k3s-nsenter "$@"
}

image_of() {
    as_owner nix2container --log-level warn --quiet load --snapshotter nix-snapshotter "$1"
}

run_container() {
    local name=$1 image=$2
    shift 2
    ctr run --snapshotter nix-snapshotter --cgroup '' --cpu-shares 0 "$@" "$image" "$name"
}

both_run() {
    eventually manager is-active nix-snapshotter.service
    eventually ctr version
}

it_serves_where_the_user_sees_it() {
    [[ -S $snapshotter_socket ]] || fail "there is no $snapshotter_socket"
    as_owner bash --login -c "nix-snapshotter status"
}

a_container_runs() {
    eventually ctr snapshots --snapshotter nix-snapshotter list
    has "$(hello)" "Hello, world!"
}

an_image_can_be_pulled() {
    has "$(ctr plugins list | awk '$2 == "local" && $1 ~ /transfer/')" ok
    has "$(inside containerd --config "$home/.rancher/k3s/agent/etc/containerd/config.toml" config dump)" \
        "snapshotter = 'nix-snapshotter'"
}

doctor_finds_no_error() {
    local told
    told=$(as_owner bash --login -c "k3s-nsenter nix-snapshotter doctor \
        --containerd-config $home/.rancher/k3s/agent/etc/containerd/config.toml") || fail "$told"
}

it_ends_in_its_own_time() {
    local since
    since=$(now)
    manager restart nix-snapshotter.service
    eventually said_since "$since" 'stopping signal="SIGTERM"'
    eventually said_since "$since" "stopped realisations="
    a_container_runs
}

it_comes_back_with_k3s() {
    local before
    before=$(property nix-snapshotter InvocationID)
    manager kill --kill-whom=main --signal=SIGKILL k3s.service
    eventually has_come_back "$before"
    both_run
    it_serves_where_the_user_sees_it
    a_container_runs
}

has_come_back() {
    manager is-active nix-snapshotter.service && [[ $(property nix-snapshotter InvocationID) != "$1" ]]
}

it_ends_with_k3s() {
    manager stop k3s.service
    equal inactive "$(property nix-snapshotter ActiveState)"
    manager start k3s.service
    both_run
}

# configure ARGUMENT…: what k3s' unit calls before k3s starts.
configure() {
    as_owner "$(manager cat k3s.service | grep --only-matching --max-count=1 '/[^ ]*/bin/k3s-configure-containerd')" "$@"
}

what_containerd_is_told_goes_with_the_configuration() {
    local drop_in=$files/config-v3.toml.d/nix-snapshotter.toml template=$files/config-v3.toml.tmpl
    as_owner mkdir "$files"
    configure "$files" /etc/nix-snapshotter/rootless.toml template
    has "$(<"$template")" "imports = [\"$drop_in\"]"
    # k3s has been upgraded.
    configure "$files" /etc/nix-snapshotter/rootless.toml
    [[ ! -e $template ]] || fail "$template outlives the k3s that has needed it"
    cmp "$drop_in" /etc/nix-snapshotter/rootless.toml
    # k3s has another snapshotter.
    configure "$files"
    equal "" "$(find "$files" -type f)"
    configure "$files"
}

a_template_of_ones_own_stays() {
    local drop_in=$files/config-v3.toml.d/nix-snapshotter.toml template=$files/config-v3.toml.tmpl
    echo '{{ template "base" . }}' >"$template"
    ! configure "$files" /etc/nix-snapshotter/rootless.toml template 2>"$files/told" ||
        fail "nobody is told that it imports no drop-in file"
    has "$(<"$files/told")" "imports = [\"$drop_in\"]"
    echo "imports = [\"$drop_in\"]" >>"$template"
    configure "$files" /etc/nix-snapshotter/rootless.toml template
    configure "$files"
    equal 2 "$(wc --lines <"$template")"
}

steps both_run it_serves_where_the_user_sees_it a_container_runs an_image_can_be_pulled doctor_finds_no_error \
    it_ends_in_its_own_time it_comes_back_with_k3s it_ends_with_k3s \
    what_containerd_is_told_goes_with_the_configuration a_template_of_ones_own_stays
