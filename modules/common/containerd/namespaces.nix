# The programs of rootless containerd: one that makes its namespaces with rootlesskit and holds them, one that runs a
# command in them, and one that ends what is left in them.
{ lib, pkgs }:
{ bindMounts }:
let
  # What the namespaces show of the user's directories. One that lies within another comes after it.
  mounts = lib.concatMapStrings
    ({ source, mountPoint }: ''
      show "${source}" "${mountPoint}"
    '')
    (lib.sort (a: b: a.mountPoint < b.mountPoint)
      (lib.mapAttrsToList (source: { mountPoint, ... }: { inherit source mountPoint; }) bindMounts));

  # The name of the user namespace, once it is there.
  namespace = "$XDG_RUNTIME_DIR/containerd-namespaces";

  child = pkgs.writeShellApplication {
    name = "containerd-namespaces-child";
    runtimeInputs = [ pkgs.coreutils pkgs.util-linux pkgs.systemd ];
    text = ''
      # rootlesskit has put links to everything of the host into /etc, /run and /var/lib. Such a link goes, to make place
      # for what is the user's own; what it names stays, as does everything else.
      show() {
        local source=$1 point
        point=$(realpath --canonicalize-missing --no-symlinks "$2")
        case ''${point%/*} in
          /etc | /run | /var/lib) [ ! -L "$point" ] || rm "$point" ;;
        esac
        mkdir --parents "$source" "$point"
        mount --bind "$source" "$point"
      }

      : "''${XDG_DATA_HOME:=$HOME/.local/share}" "''${XDG_CONFIG_HOME:=$HOME/.config}"
      # The lock of the host's iptables belongs to root.
      rm --force /run/xtables.lock
      ${mounts}
      # By its name, what is left in the namespaces is found when they are given up.
      readlink /proc/self/ns/user >"${namespace}"
      # rootlesskit fails when this does: to be stopped is no failure.
      trap 'exit 0' TERM
      systemd-notify --ready --status="holding the namespaces"
      sleep infinity &
      wait
    '';
  };
in
{
  inherit child;

  hold = pkgs.writeShellApplication {
    name = "containerd-namespaces";
    runtimeInputs = [ pkgs.iproute2 pkgs.rootlesskit pkgs.slirp4netns pkgs.util-linux ];
    text = ''
      # Commands of packages before those in /run/wrappers, of which only newuidmap and newgidmap are needed: the mount
      # there is setuid, and refuses in a user namespace. Other distributions have the two in /usr/bin.
      export PATH="$PATH:/run/wrappers/bin:/usr/bin:/bin"
      # The directory is where nerdctl looks for it.
      exec rootlesskit \
        --state-dir="$XDG_RUNTIME_DIR/containerd-rootless" \
        --net=slirp4netns --disable-host-loopback --port-driver=builtin \
        --copy-up=/etc --copy-up=/run --copy-up=/var/lib \
        --propagation=rslave \
        ${child}/bin/containerd-namespaces-child
    '';
  };

  # Containers and their shims have control groups of their own, and would go on where there is no network any more. Who
  # owns a user namespace may end everything in it, whatever its user (user_namespaces(7)).
  end = pkgs.writeShellApplication {
    name = "containerd-namespaces-end";
    runtimeInputs = [ pkgs.coreutils ];
    text = ''
      if [ ! -e "${namespace}" ]; then
        exit 0
      fi
      namespace=$(<"${namespace}")
      rm "${namespace}"

      left() {
        local process
        for process in /proc/[0-9]*; do
          if [ "$(readlink "$process/ns/user")" = "$namespace" ]; then
            echo "''${process#/proc/}"
          fi
        done 2>/dev/null
      }

      for signal in TERM KILL; do
        for ((tries = 0; tries < 50; tries++)); do
          mapfile -t processes < <(left)
          if ((''${#processes[@]} == 0)); then
            exit 0
          fi
          if ((tries == 0)); then
            kill -s "$signal" "''${processes[@]}" 2>/dev/null || true
          fi
          sleep 0.1
        done
      done
      echo "these processes are left in namespaces that nobody holds: ''${processes[*]}" >&2
      exit 1
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
      # It is for outside, and the path in the configuration for within.
      unset NIX_SNAPSHOTTER_ADDRESS
      exec nsenter --no-fork --preserve-credentials --user --mount --net --target "$(<"$child")" -- "$@"
    '';
  };
}
