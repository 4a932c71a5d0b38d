# Nix images under the runtime of gVisor, for root and for a user.
{ pkgs, python, ... }:
let
  redis = pkgs.nix-snapshotter.buildImage {
    name = "example.org/redis";
    copyToRoot = [ pkgs.util-linux ];
    config = {
      entrypoint = [ "${pkgs.redis}/bin/redis-server" ];
      cmd = [ "--protected-mode" "no" ];
    };
  };

  machines = import ./common/machines.nix [ redis ];
in
{
  nodes.rootful = {
    imports = [ machines.rootful ];
    virtualisation.containerd.gVisorIntegration = true;
  };

  nodes.rootless = {
    imports = [ machines.rootless ];
    virtualisation.containerd.rootless.gVisorIntegration = true;
  };

  testScript = python + ''
    start_all()

    for machine, (run, systemctl, _) in [(rootful, ROOT), (rootless, ALICE)]:
        machine.wait_until_succeeds(run(f"{systemctl} is-active preload-containerd"))

        with subtest(f"{machine.name}: redis answers"):
            machine.succeed(run(
                "nerdctl run --detach --name redis --runtime runsc --cap-add syslog --publish 30000:6379 ${redis.image}"
            ))
            machine.wait_until_succeeds("redis-cli -p 30000 ping | grep PONG")

        with subtest(f"{machine.name}: from within gVisor"):
            output = machine.succeed(run("nerdctl exec redis dmesg"))
            assert "Starting gVisor" in output, output
  '';
}
