# The programs that run something in the namespaces that the k3s of a user makes, and end it there.
#
# That of processes is among them, and with it their /proc, without which Nix does not run. Nobody can enter that one
# themselves, only have a child in it: nsenter stays outside, and waits.
{ pkgs }:
{
  nsenter = pkgs.writeShellApplication {
    name = "k3s-nsenter";
    runtimeInputs = [ pkgs.coreutils pkgs.gnugrep pkgs.util-linux ];
    text = ''
      child=$HOME/.rancher/k3s/rootless/child_pid
      # k3s tells nobody when its namespaces are there. The last mount that it makes is the directory of containerd's
      # sockets: whoever comes earlier has theirs below it, where nobody finds it (k3s, pkg/rootless/mounts.go).
      for ((tries = 0; tries < 600; tries++)); do
        if [ -s "$child" ]; then
          pid=$(<"$child")
          if grep --quiet '/k3s/containerd /run/k3s/containerd ' "/proc/$pid/mountinfo" 2>/dev/null; then
            # It is for outside, and the path in the configuration for within.
            unset NIX_SNAPSHOTTER_ADDRESS
            exec nsenter --preserve-credentials --user --mount --net --pid --target "$pid" -- "$@"
          fi
        fi
        sleep 0.1
      done
      echo "$child names no process of a k3s that has made its mounts: start k3s.service" >&2
      exit 1
    '';
  };

  # systemd knows nsenter, which hands no signal on, as the process of such a service.
  end = pkgs.writeShellApplication {
    name = "k3s-nsenter-end";
    runtimeInputs = [ pkgs.coreutils pkgs.procps ];
    text = ''
      if [ -n "''${MAINPID-}" ] && pkill --signal TERM --parent "$MAINPID"; then
        tail --pid="$MAINPID" --sleep-interval=0.1 --follow /dev/null
      fi
    '';
  };
}
