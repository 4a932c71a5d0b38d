# The programs of rootless containerd: one that makes its namespaces with rootlesskit and holds them, and one that runs
# a command in them.
{ lib, pkgs }:
{ bindMounts }:
let
  # Commands of packages before those in /run/wrappers, of which only newuidmap and newgidmap are needed: the mount there
  # is setuid, and refuses in a user namespace. Other distributions have the two in /usr/bin.
  wrappers = ''
    export PATH="$PATH:/run/wrappers/bin:/usr/bin:/bin"
  '';

  # What the namespaces show of the user's directories.
  mounts = lib.concatStrings (lib.mapAttrsToList
    (source: { mountPoint, ... }: ''
      show "${source}" ${lib.escapeShellArg mountPoint}
    '')
    bindMounts);

  child = pkgs.writeShellApplication {
    name = "containerd-namespaces-child";
    runtimeInputs = [ pkgs.coreutils pkgs.util-linux pkgs.systemd ];
    text = ''
      # rootlesskit has put links to everything of the host into /etc, /run and /var/lib. A link goes, to make place for
      # what is the user's own; what it names stays.
      show() {
        local source=$1 point=$2
        rm --recursive --force "$point"
        mkdir --parents "$source" "$point"
        mount --bind "$source" "$point"
      }

      : "''${XDG_DATA_HOME:=$HOME/.local/share}" "''${XDG_CONFIG_HOME:=$HOME/.config}"
      # The lock of the host's iptables belongs to root.
      rm --force /run/xtables.lock
      ${mounts}
      systemd-notify --ready --status="holding the namespaces"
      exec sleep infinity
    '';
  };
in
{
  inherit child;

  hold = pkgs.writeShellApplication {
    name = "containerd-namespaces";
    runtimeInputs = [ pkgs.coreutils pkgs.gnugrep pkgs.iproute2 pkgs.rootlesskit pkgs.slirp4netns pkgs.util-linux ];
    text = ''
      ${wrappers}
      user=$(id --user --name)
      for file in /etc/subuid /etc/subgid; do
        if ! grep --quiet --extended-regexp "^($user|$(id --user)):" "$file"; then
          echo "$file has no range for $user, which rootless containers need: usermod --add-subuids 100000-165535 \
      --add-subgids 100000-165535 $user, or on NixOS users.users.$user.autoSubUidGidRange = true" >&2
          exit 1
        fi
      done
      if ! type -P newuidmap >/dev/null; then
        echo "newuidmap is not there: install the package uidmap or shadow of your distribution" >&2
        exit 1
      fi

      # The directory is where nerdctl looks for it.
      exec rootlesskit \
        --state-dir="$XDG_RUNTIME_DIR/containerd-rootless" \
        --net=slirp4netns --disable-host-loopback --port-driver=builtin \
        --copy-up=/etc --copy-up=/run --copy-up=/var/lib \
        --propagation=rslave \
        ${child}/bin/containerd-namespaces-child
    '';
  };

  nsenter = pkgs.writeShellApplication {
    name = "containerd-nsenter";
    runtimeInputs = [ pkgs.util-linux ];
    text = ''
      child=$XDG_RUNTIME_DIR/containerd-rootless/child_pid
      if [ ! -e "$child" ]; then
        echo "$child does not exist: start containerd-namespaces.service" >&2
        exit 1
      fi
      exec nsenter --no-fork --preserve-credentials --user --mount --net --target "$(<"$child")" -- "$@"
    '';
  };
}
