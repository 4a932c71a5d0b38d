# Images to a registry and back, by root and by a user.
{ examples, pkgs, python, ... }:
let
  registry = "registry:5000";

  push = examples.hello.copyToRegistry { imageName = "${registry}/$PLACE/nix"; plainHTTP = true; };
  ordinaryName = "${registry}/ordinary";
  ordinary = pkgs.dockerTools.buildImage {
    name = ordinaryName;
    tag = "latest";
    config.Entrypoint = [ "${pkgs.hello}/bin/hello" ];
  };

  machines = import ./common/machines.nix [ ordinary ];
  client = {
    environment.systemPackages = [ push ];
  };
in
{
  nodes.registry.services.dockerRegistry = {
    enable = true;
    listenAddress = "0.0.0.0";
    openFirewall = true;
  };

  nodes.rootful = {
    imports = [ machines.rootful client ];
  };

  nodes.rootless = {
    imports = [ machines.rootless client ];
  };

  testScript = python + ''
    start_all()
    registry.wait_for_unit("docker-registry.service")
    registry.wait_for_open_port(5000)

    for machine, (run, systemctl, _) in [(rootful, ROOT), (rootless, ALICE)]:
        machine.wait_until_succeeds(run(f"{systemctl} is-active preload-containerd"))
        nix = f"${registry}/{machine.name}/nix"

        with subtest(f"{machine.name}: a Nix image"):
            machine.succeed(run(f"PLACE={machine.name} copy-to-registry"))
            machine.succeed(run(f"nerdctl --insecure-registry pull {nix}"))
            output = machine.succeed(run(f"nerdctl run --rm {nix}"))
            assert "Hello, world!" in output, output

        with subtest(f"{machine.name}: a Nix image that nerdctl pushes"):
            machine.succeed(run(f"nerdctl tag {nix} {nix}:again"))
            machine.succeed(run(f"nerdctl --insecure-registry push {nix}:again"))
            machine.succeed(run(f"nerdctl rmi {nix} {nix}:again"))
            machine.succeed(run(f"nerdctl --insecure-registry pull {nix}:again"))
            output = machine.succeed(run(f"nerdctl run --rm {nix}:again"))
            assert "Hello, world!" in output, output

        with subtest(f"{machine.name}: an ordinary image"):
            machine.succeed(run("nerdctl --insecure-registry push ${ordinaryName}"))
            machine.succeed(run("nerdctl rmi ${ordinaryName}"))
            machine.succeed(run("nerdctl --insecure-registry pull ${ordinaryName}"))
            output = machine.succeed(run("nerdctl run --rm ${ordinaryName}"))
            assert "Hello, world!" in output, output
  '';
}
