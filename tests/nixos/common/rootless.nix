# containerd with the snapshotter, as services of a user.
{
  imports = [ ./alice.nix ./clients.nix ];

  virtualisation.containerd.rootless = {
    enable = true;
    nixSnapshotterIntegration = true;
  };
  services.nix-snapshotter.rootless.enable = true;
}
