# The tests in virtual machines, by name: one file, one behaviour. What they have in common is in common/, and steps that
# `make test-systemd` takes too, without a virtual machine, are in ../scenarios.
{ pkgs
, nixosModules
, homeModules
, home-manager
}:

let
  inherit (pkgs) lib;

  examples = import ../../pkgs/examples.nix { inherit pkgs; };

  # What the scripts of the tests begin with.
  python = builtins.readFile ./common/users.py + ''


    # The steps of ../scenarios/<name>.sh, on the services of a user, or of the machine.
    def scenario(machine, name: str, user: str) -> None:
        variables = "HELLO_IMAGE=${examples.hello} REDIS_IMAGE=${examples.redis}"
        machine.succeed(f"{variables} SCENARIO_USER={user} bash /etc/scenarios/{name}.sh >&2")


  '';

  test = name: pkgs.testers.runNixOSTest {
    imports = [ (./. + "/${name}.nix") ];
    inherit name;
    # With the overlay, also where `testers` is of a package set from before it.
    hostPkgs = lib.mkForce pkgs;

    # Long enough for a slow machine, and short of what hangs.
    globalTimeout = lib.mkDefault 900;
    defaults = {
      imports = [ nixosModules.default ];
      environment.etc.scenarios.source = ../scenarios;
    };

    _module.args = {
      k8sResources = import ../../pkgs/kubernetes-resources.nix { inherit pkgs; };
      inherit examples home-manager homeModules python;
    };
  };
in
lib.genAttrs [
  "external-builder"
  "gc"
  "gvisor"
  "home-manager-rootless"
  "k3s"
  "k3s-external"
  "k3s-rootless"
  "kubernetes"
  "push-n-pull"
  "services"
  "snapshotter"
  "upgrade-restart"
]
  test
