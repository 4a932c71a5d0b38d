# Containers go on, with what they have in memory, whichever daemon is restarted, and over an upgrade of the system.
{ examples, python, ... }:
let
  preload = {
    enable = true;
    targets = [{ archives = [ examples.hello examples.redis ]; }];
  };
in
{
  nodes.rootful = {
    imports = [ ./common/rootful.nix ];
    services.preload-containerd = preload;

    # What changes the units of both daemons.
    specialisation.upgraded.configuration = {
      services.nix-snapshotter.settings.max_realisations = 4;
      virtualisation.containerd.settings.debug.level = "debug";
    };
  };

  nodes.rootless = {
    imports = [ ./common/rootless.nix ];
    services.preload-containerd.rootless = preload;
  };

  testScript = python + ''
    start_all()


    def has_gone_on(machine, run):
        # Redis has it in memory alone.
        output = machine.succeed("redis-cli -p 30000 get key")
        assert output == "value\n", output
        output = machine.succeed(run("nerdctl run --rm ${examples.hello.image}"))
        assert "Hello, world!" in output, output


    for machine, (run, systemctl) in [(rootful, ROOT), (rootless, ALICE)]:
        machine.wait_until_succeeds(run(f"{systemctl} is-active preload-containerd"))
        machine.succeed(run(
            "nerdctl run --detach --name redis --publish 30000:6379 ${examples.redis.image} --protected-mode no --save '''"
        ))
        machine.wait_until_succeeds("redis-cli -p 30000 set key value")

        for units in ["nix-snapshotter", "containerd", "nix-snapshotter containerd"]:
            with subtest(f"{machine.name}: {units} restarted"):
                machine.succeed(run(f"{systemctl} restart {units}"))
                has_gone_on(machine, run)

        for unit in ["nix-snapshotter", "containerd"]:
            with subtest(f"{machine.name}: {unit} killed"):
                machine.succeed(run(f"{systemctl} kill --kill-whom=main --signal=KILL {unit}"))
                machine.wait_until_succeeds(run("nerdctl run --rm ${examples.hello.image}"))
                has_gone_on(machine, run)

        with subtest(f"{machine.name}: the container is restarted as ever"):
            machine.succeed(run("nerdctl restart redis"))
            machine.wait_until_succeeds("redis-cli -p 30000 ping | grep PONG")

    with subtest("an upgrade of the system"):
        rootful.wait_until_succeeds("redis-cli -p 30000 set key value")
        rootful.succeed("/run/current-system/specialisation/upgraded/bin/switch-to-configuration test")
        has_gone_on(rootful, as_root)
  '';
}
