{ config, lib, ... }:
let
  cfg = config.services.nix-snapshotter.userServices;
  inherit (import ../common/unit.nix { inherit lib; }) toNixOS;
  export = import ../common/environment.nix { inherit lib; };
in
{
  config = lib.mkIf (cfg.units != { } || cfg.variables != { }) {
    systemd.user.services = lib.mapAttrs (_: toNixOS) cfg.units;

    # Before the variables of the rootful daemons, which root and nobody else can use.
    environment.extraInit = lib.mkBefore ''
      if [ "$(id -u)" != 0 ]; then
      ${export cfg.variables}fi
    '';
  };
}
