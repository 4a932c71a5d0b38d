# containerd with the snapshotter, as services of the system.
{
  imports = [ ./clients.nix ];

  virtualisation.containerd = {
    enable = true;
    nixSnapshotterIntegration = true;
  };
  services.nix-snapshotter.enable = true;
}
