# Images for the containerd of the system, or of its k3s.
{ config, lib, ... }:
let
  cfg = config.services.preload-containerd;
  daemon = config.services.nix-snapshotter;
  inherit (config.virtualisation) containerd;
  inherit (import ../common/unit.nix { inherit lib; }) toNixOS;
  preload = import ../common/preload.nix { inherit lib; };
  k3s = config.services.k3s.enable && !containerd.k3sIntegration;
in
{
  options.services.preload-containerd = preload.options {
    address = daemon.settings.image_service.containerd_address;
    addressText = lib.literalExpression "config.services.nix-snapshotter.settings.image_service.containerd_address";
    addressExample = "/run/k3s/containerd/containerd.sock";
  };

  config = lib.mkIf (preload.isNeeded cfg) {
    systemd.services.preload-containerd = toNixOS (preload.unit {
      inherit daemon;
      inherit (cfg) targets;
      containerd = if k3s then "k3s.service" else "containerd.service";
      wantedBy = [ "multi-user.target" ];
    });

    assertions = preload.checks {
      inherit (cfg) targets;
      option = "services.preload-containerd.targets";
      isIntegrated =
        containerd.enable && containerd.nixSnapshotterIntegration || k3s && config.services.k3s.snapshotter == "nix";
      ways = ''
        virtualisation.containerd.{enable,nixSnapshotterIntegration} = true, or services.k3s.snapshotter = "nix" with
        services.k3s.enable = true'';
    };
  };
}
