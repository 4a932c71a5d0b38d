# The same under k3s with the containerd of the system.
{ k8sResources, pkgs, python, ... }:
let
  k3s = import ./common/k3s.nix { inherit k8sResources pkgs; };
in
{
  globalTimeout = 1800;

  nodes.machine = {
    imports = [ k3s.machine ./common/rootful.nix ];

    virtualisation.containerd.k3sIntegration = true;
    services.k3s = {
      enable = true;
      setKubeConfig = true;
      moreFlags = k3s.flags;
    };

    # k3s loads images into its embedded containerd only.
    services.preload-containerd = {
      enable = true;
      targets = [{ archives = k3s.images; namespace = "k8s.io"; }];
    };
  };

  testScript = python + k3s.script "as_root";
}
