# Images for the containerd of the system, or of its k3s.
{ config, lib, ... }:
let
  cfg = config.services.preload-containerd;
  daemon = config.services.nix-snapshotter;
  inherit (import ../common/unit.nix { inherit lib; }) toNixOS;
  preload = import ../common/preload.nix { inherit lib; };
  k3s = config.services.k3s.enable && !config.virtualisation.containerd.k3sIntegration;
in
{
  options.services.preload-containerd = preload.options {
    address = daemon.settings.image_service.containerd_address;
    addressText = lib.literalExpression "config.services.nix-snapshotter.settings.image_service.containerd_address";
  };

  config = lib.mkIf (preload.isNeeded cfg) {
    systemd.services.preload-containerd = toNixOS (preload.unit {
      inherit daemon;
      inherit (cfg) targets;
      containerd = if k3s then "k3s.service" else "containerd.service";
      wantedBy = [ "multi-user.target" ];
    });

    assertions = [
      {
        assertion = config.virtualisation.containerd.enable || config.services.k3s.enable;
        message = ''
          services.preload-containerd.enable is set, but neither virtualisation.containerd.enable nor services.k3s.enable:
          there is no containerd to load images into.
        '';
      }
    ];
  };
}
