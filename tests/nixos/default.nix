# The tests in virtual machines, by name: one file, one behaviour. What they have in common is in common/, and steps that
# `make test-systemd` takes too, without a virtual machine, are in ../scenarios.
{ pkgs
, nixosModules
, homeModules
, home-manager
}:

let
  inherit (pkgs) lib;

  test = name: pkgs.testers.runNixOSTest {
    imports = [ (./. + "/${name}.nix") ];
    inherit name;
    # With the overlay, also where `testers` is of a package set from before it.
    hostPkgs = lib.mkForce pkgs;

    # Long enough for a slow machine, and short of what hangs.
    globalTimeout = lib.mkDefault 900;
    defaults.imports = [ nixosModules.default ];

    _module.args = {
      examples = import ../../pkgs/examples.nix { inherit pkgs; };
      k8sResources = import ../../pkgs/kubernetes-resources.nix { inherit pkgs; };
      python = builtins.readFile ./common/users.py;
      inherit homeModules home-manager;
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
  "snapshotter"
  "upgrade-restart"
]
  test
