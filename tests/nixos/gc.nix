# What images and containers need stays in the store, and nothing else does.
{ examples, pkgs, python, ... }: {
  # What the script names is in the store by `additionalPaths`.
  includeTestScriptReferences = false;

  nodes.machine = {
    imports = [ ./common/rootful.nix ./common/own-store.nix ];
    # In the store without anything that holds it.
    virtualisation.additionalPaths = [ examples.hello examples.redis ];
  };

  testScript = python + ''
    machine.wait_for_unit("containerd.service")
    machine.succeed("nix2container load ${examples.hello} ${examples.redis}")
    machine.succeed(as_root("nerdctl run --detach --name redis --publish 30000:6379 ${examples.redis.image}"))
    machine.wait_until_succeeds("redis-cli -p 30000 ping | grep PONG")

    with subtest("images hold their closures, and not their archives"):
        machine.succeed("nix-collect-garbage")
        machine.succeed("test ! -e ${examples.hello}")
        output = machine.succeed(as_root("nerdctl run --rm ${examples.hello.image}"))
        assert "Hello, world!" in output, output
        machine.succeed("redis-cli -p 30000 ping | grep PONG")

    with subtest("a container holds the closure of its image, which has been removed"):
        machine.succeed("nix2container unload ${examples.redis.image}")
        machine.succeed("nix-collect-garbage")
        machine.succeed("redis-cli -p 30000 ping | grep PONG")
        machine.succeed(as_root("nerdctl restart redis"))
        machine.wait_until_succeeds("redis-cli -p 30000 ping | grep PONG")

    with subtest("what nothing needs is freed"):
        machine.succeed(as_root("nerdctl rm --force redis"))
        machine.succeed("nix2container unload ${examples.hello.image}")
        machine.wait_until_succeeds("nix-collect-garbage && test ! -e ${pkgs.hello} && test ! -e ${examples.redis}")
        machine.succeed("test -z \"$(find /var/lib/containerd/io.containerd.snapshotter.v1.nix/gcroots -type l)\"")
  '';
}
