# What images and containers need stays in the store, and nothing else does.
{ examples, pkgs, python, ... }:
let
  # Nothing else in the machine is of this store path.
  redis = pkgs.runCommand "redis-server" { } ''
    install -D ${pkgs.redis}/bin/redis-server $out/bin/redis-server
  '';
  image = pkgs.nix-snapshotter.buildImage {
    name = "example.org/redis";
    config.entrypoint = [ "${redis}/bin/redis-server" "--protected-mode" "no" ];
  };

  machines = import ./common/machines.nix [ examples.hello ];
in
{
  # What the script names is in the store by `additionalPaths`.
  includeTestScriptReferences = false;

  nodes.rootful = {
    imports = [ machines.rootful ./common/own-store.nix ];
    # In the store without anything that holds it.
    virtualisation.additionalPaths = [ image ];
  };

  nodes.rootless = {
    imports = [ machines.rootless ./common/own-store.nix ];
    virtualisation.additionalPaths = [ image ];
  };

  testScript = python + ''
    start_all()

    for machine, (run, systemctl, user) in [(rootful, ROOT), (rootless, ALICE)]:
        machine.wait_until_succeeds(run(f"{systemctl} is-active preload-containerd"))

        with subtest(f"{machine.name}: an image holds its closure, and not its archive"):
            machine.succeed(run("nix2container load ${image}"))
            machine.succeed("nix-collect-garbage")
            machine.succeed("test -e ${redis} && test ! -e ${image}")

        with subtest(f"{machine.name}: so does a container, when the image has been removed"):
            machine.succeed(run("nerdctl run --detach --name redis --publish 30000:6379 ${image.image}"))
            machine.wait_until_succeeds("redis-cli -p 30000 ping | grep PONG")
            machine.succeed(run("nix2container unload ${image.image}"))
            machine.succeed("nix-collect-garbage")
            machine.succeed("redis-cli -p 30000 ping | grep PONG")
            machine.succeed(run("nerdctl restart redis"))
            machine.wait_until_succeeds("redis-cli -p 30000 ping | grep PONG")

        with subtest(f"{machine.name}: what nothing needs is freed"):
            machine.succeed(run("nerdctl rm --force redis"))
            machine.wait_until_succeeds("nix-collect-garbage && test ! -e ${redis}")

        with subtest(f"{machine.name}: the scenario gc"):
            scenario(machine, "gc", user)
  '';
}
