# Images for the containerd of a user, or of a user's k3s.
{ config, lib, ... }:
let
  cfg = config.services.preload-containerd.rootless;
  daemon = config.services.nix-snapshotter.rootless;
  containerd = config.virtualisation.containerd.rootless;
  preload = import ./preload.nix { inherit lib; };
  k3s = config.services.k3s.rootless;
in
{
  options.services.preload-containerd.rootless = preload.options {
    address = "$XDG_RUNTIME_DIR/${lib.optionalString k3s.enable "k3s/"}containerd/containerd.sock";
    addressText = "that of the user's containerd, or of the user's k3s";
    addressExample = "$XDG_RUNTIME_DIR/containerd/containerd.sock";
  };

  config = lib.mkIf (preload.isNeeded cfg) {
    services.nix-snapshotter.userServices.units.preload-containerd = { unit.ConditionUser = "!@system"; } // preload.unit {
      inherit daemon;
      inherit (cfg) targets;
      containerd = if k3s.enable then "k3s.service" else "containerd.service";
      wantedBy = [ "default.target" ];
    };

    assertions = preload.checks {
      inherit (cfg) targets;
      option = "services.preload-containerd.rootless.targets";
      isIntegrated = containerd.enable && containerd.nixSnapshotterIntegration || k3s.enable && k3s.snapshotter == "nix";
      ways = ''
        virtualisation.containerd.rootless.{enable,nixSnapshotterIntegration} = true, or services.k3s.rootless.snapshotter =
        "nix" with services.k3s.rootless.enable = true'';
    };
  };
}
