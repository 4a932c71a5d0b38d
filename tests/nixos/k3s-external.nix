# The same under k3s with the containerd of the system.
{ k8sResources, pkgs, python, ... }:
let
  k3s = import ./common/k3s.nix { inherit k8sResources pkgs; };

  # The sandboxes of pods, as nixpkgs' module of kubelet has it. containerd's own default is an image of a registry.
  pause = pkgs.dockerTools.buildImage {
    name = "pause";
    tag = "latest";
    copyToRoot = pkgs.buildEnv {
      name = "pause";
      paths = [ pkgs.kubernetes.pause ];
      pathsToLink = [ "/bin" ];
    };
    config.Cmd = [ "/bin/pause" ];
  };
in
{
  globalTimeout = 1800;

  nodes.machine = {
    imports = [ k3s.machine ./common/rootful.nix ];

    virtualisation.containerd = {
      k3sIntegration = true;
      settings.plugins."io.containerd.grpc.v1.cri".sandbox_image = "docker.io/library/pause:latest";
    };
    services.k3s = {
      enable = true;
      setKubeConfig = true;
      moreFlags = k3s.flags;
    };

    # k3s loads images into its embedded containerd only.
    services.preload-containerd = {
      enable = true;
      targets = [{ archives = k3s.images ++ [ pause ]; namespace = "k8s.io"; }];
    };
  };

  testScript = python + k3s.script "as_root";
}
