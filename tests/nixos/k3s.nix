# A pod whose image is a store path, under k3s with its embedded containerd.
{ k8sResources, pkgs, python, ... }:
let
  k3s = import ./common/k3s.nix { inherit k8sResources pkgs; };
in
{
  globalTimeout = 1800;

  nodes.machine = {
    imports = [ k3s.machine ];

    services.k3s = {
      enable = true;
      setEmbeddedContainerd = true;
      setKubeConfig = true;
      snapshotter = "nix";
      inherit (k3s) images;
      moreFlags = k3s.flags;
    };
  };

  testScript = python + k3s.script "as_root" + ''
    with subtest("CONTAINERD_… name the embedded containerd"):
        machine.succeed(as_root("ctr images list --quiet | grep --fixed-strings nix:0/nix/store/"))
  '';
}
