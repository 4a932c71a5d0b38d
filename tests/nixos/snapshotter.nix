# Containers of Nix images and of ordinary ones, of root and of a user.
{ examples, pkgs, python, ... }:
let
  # A store path that is a file, not a directory.
  file = pkgs.nix-snapshotter.buildImage {
    name = "example.org/file";
    config.entrypoint = [ "${pkgs.writeShellScript "say-hello" "echo hello from a file"}" ];
  };

  ordinaryName = "example.org/ordinary";
  ordinary = pkgs.dockerTools.buildImage {
    name = ordinaryName;
    tag = "latest";
    config = {
      Entrypoint = [ "${pkgs.redis}/bin/redis-server" ];
      Cmd = [ "--protected-mode" "no" ];
    };
  };

  machines = import ./common/machines.nix [ examples.hello examples.redis examples.redisWithShell file ];
in
{
  nodes = machines;

  testScript = python + ''
    start_all()

    for machine, (run, systemctl, user) in [(rootful, ROOT), (rootless, ALICE)]:
        machine.wait_until_succeeds(run(f"{systemctl} is-active preload-containerd"))

        for name in ["hello", "redis"]:
            with subtest(f"{machine.name}: the scenario {name}"):
                scenario(machine, name, user)

        with subtest(f"{machine.name}: a store path that is a file"):
            output = machine.succeed(run("nerdctl run --rm ${file.image}"))
            assert "hello from a file" in output, output

        with subtest(f"{machine.name}: files of a closure below /, on a Nix image"):
            output = machine.succeed(run("nerdctl run --rm ${examples.redisWithShell.image} -c 'ls /bin/redis-cli'"))
            assert "/bin/redis-cli" in output, output

        with subtest(f"{machine.name}: the network of a Nix image"):
            machine.succeed(run("nerdctl run --detach --publish 30000:6379 ${examples.redis.image}"))
            machine.wait_until_succeeds("redis-cli -p 30000 ping | grep PONG")

        # Not from the start: the scenarios look at what is in snapshots.
        with subtest(f"{machine.name}: an ordinary image beside it"):
            machine.succeed(run("nix2container load ${ordinary}"))
            machine.succeed(run("nerdctl run --detach --publish 30001:6379 ${ordinaryName}"))
            machine.wait_until_succeeds("redis-cli -p 30001 ping | grep PONG")
  '';
}
