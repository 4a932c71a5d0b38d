{ config, lib, ... }:
let
  cfg = config.services.nix-snapshotter.userServices;
  inherit (import ../common/unit.nix { inherit lib; }) toHomeManager;
  export = import ../common/environment.nix { inherit lib; };
in
{
  config = lib.mkIf (cfg.units != { } || cfg.variables != { }) {
    systemd.user.services = lib.mapAttrs (_: toHomeManager) cfg.units;
    home.sessionVariablesExtra = export cfg.variables;
  };
}
