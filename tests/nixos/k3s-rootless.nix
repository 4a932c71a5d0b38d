# The same under the k3s of a user.
{ k8sResources, pkgs, python, ... }:
let
  k3s = import ./common/k3s.nix { inherit k8sResources pkgs; };
in
{
  globalTimeout = 1800;

  nodes.machine = {
    imports = [ k3s.machine ./common/alice.nix ];

    services.k3s.rootless = {
      enable = true;
      setKubeConfig = true;
      snapshotter = "nix";
      extraFlags = k3s.flags;
    };

    services.preload-containerd.rootless = {
      enable = true;
      targets = [{ archives = k3s.images; namespace = "k8s.io"; }];
    };
  };

  testScript = python + k3s.script "as_alice";
}
