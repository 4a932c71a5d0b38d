# Containers go on, with what they have in memory, whichever daemon is restarted, and over an upgrade of the system.
{ examples, python, ... }:
let
  machines = import ./common/machines.nix [ examples.hello examples.redis ];
in
{
  nodes.rootful = {
    imports = [ machines.rootful ];

    # What changes the units of both daemons.
    specialisation.upgraded.configuration = {
      services.nix-snapshotter.settings.max_realisations = 4;
      virtualisation.containerd.settings.debug.level = "debug";
    };
  };

  nodes.rootless = machines.rootless;

  testScript = python + ''
    start_all()

    for machine, (run, systemctl, user) in [(rootful, ROOT), (rootless, ALICE)]:
        machine.wait_until_succeeds(run(f"{systemctl} is-active preload-containerd"))
        with subtest(f"{machine.name}: the scenario restart"):
            scenario(machine, "restart", user)

        with subtest(f"{machine.name}: a published port, over a restart of both daemons"):
            # With nothing on a disk that it could read again.
            machine.succeed(run(
                "nerdctl run --detach --name redis --publish 30000:6379 ${examples.redis.image} --protected-mode no --save '''"
            ))
            machine.wait_until_succeeds("redis-cli -p 30000 set key value")
            machine.succeed(run(f"{systemctl} restart nix-snapshotter containerd"))
            machine.succeed("redis-cli -p 30000 get key | grep value")

        with subtest(f"{machine.name}: the container is restarted as ever"):
            machine.succeed(run("nerdctl restart redis"))
            machine.wait_until_succeeds("redis-cli -p 30000 ping | grep PONG")

    with subtest("an upgrade of the system that restarts both"):
        units = ["nix-snapshotter", "containerd"]
        before = [rootful.succeed(f"systemctl show --property=InvocationID {unit}") for unit in units]
        rootful.succeed("redis-cli -p 30000 set key value")
        rootful.succeed("/run/current-system/specialisation/upgraded/bin/switch-to-configuration test")
        after = [rootful.succeed(f"systemctl show --property=InvocationID {unit}") for unit in units]
        assert all(old != new for old, new in zip(before, after)), (before, after)
        rootful.succeed("redis-cli -p 30000 get key | grep value")
        scenario(rootful, "hello", "")
  '';
}
