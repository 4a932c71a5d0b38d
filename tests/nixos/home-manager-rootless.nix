# containerd and the snapshotter as services that Home Manager gives a user.
{ examples, home-manager, homeModules, python, ... }: {
  nodes.machine = {
    imports = [ home-manager.nixosModules.home-manager ./common/alice.nix ./common/clients.nix ];

    home-manager.useGlobalPkgs = true;
    home-manager.users.alice = {
      imports = [ homeModules.default ];

      virtualisation.containerd.rootless = {
        enable = true;
        nixSnapshotterIntegration = true;
      };
      services.nix-snapshotter.rootless.enable = true;
      services.preload-containerd.rootless = {
        enable = true;
        targets = [{ archives = [ examples.hello examples.redis ]; }];
      };

      # So that Home Manager sets variables in her shell.
      programs.bash.enable = true;
      home.stateVersion = "25.05";
    };
  };

  testScript = python + ''
    for unit in ["nix-snapshotter", "containerd", "preload-containerd"]:
        machine.wait_until_succeeds(as_alice(f"systemctl --user is-active {unit}"))

    with subtest("a container"):
        output = machine.succeed(as_alice("nerdctl run --rm ${examples.hello.image}"))
        assert "Hello, world!" in output, output

    with subtest("its network"):
        machine.succeed(as_alice("nerdctl run --detach --publish 30000:6379 ${examples.redis.image}"))
        machine.wait_until_succeeds("redis-cli -p 30000 ping | grep PONG")
  '';
}
