# Images for the containerd of a user, or of a user's k3s.
{ config, lib, ... }:
let
  cfg = config.services.preload-containerd.rootless;
  daemon = config.services.nix-snapshotter.rootless;
  preload = import ./preload.nix { inherit lib; };
  k3s = config.services.k3s.rootless.enable;
in
{
  options.services.preload-containerd.rootless = preload.options {
    address =
      if k3s then "$XDG_RUNTIME_DIR/k3s/containerd/containerd.sock" else "$XDG_RUNTIME_DIR/containerd/containerd.sock";
    addressText = "that of the user's containerd, or of the user's k3s";
  };

  config = lib.mkIf (preload.isNeeded cfg) {
    services.nix-snapshotter.userServices.units.preload-containerd = { unit.ConditionUser = "!root"; } // preload.unit {
      inherit daemon;
      inherit (cfg) targets;
      containerd = if k3s then "k3s.service" else "containerd.service";
      wantedBy = [ "default.target" ];
    };

    assertions = [
      {
        assertion = config.virtualisation.containerd.rootless.enable || k3s;
        message = ''
          services.preload-containerd.rootless.enable is set, but neither virtualisation.containerd.rootless.enable nor
          services.k3s.rootless.enable: there is no containerd to load images into.
        '';
      }
    ];
  };
}
