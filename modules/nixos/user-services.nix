{ config, lib, ... }:
let
  cfg = config.services.nix-snapshotter.userServices;
  inherit (import ../common/unit.nix { inherit lib; }) toNixOS;
  export = import ../common/environment.nix { inherit lib; };
in
{
  config = lib.mkMerge [
    { services.nix-snapshotter.userServices.directory = "/etc/nix-snapshotter"; }

    (lib.mkIf (cfg.units != { } || cfg.variables != { }) {
      systemd.user.services = lib.mapAttrs (_: toNixOS) cfg.units;

      environment = {
        systemPackages = cfg.packages;
        etc = lib.mapAttrs' (name: source: lib.nameValuePair "nix-snapshotter/${name}" { inherit source; }) cfg.files;

        # Before the variables of the rootful daemons, which root and nobody else can use.
        extraInit = lib.mkBefore ''
          if [ "$(id -u)" != 0 ]; then
          ${export cfg.variables}fi
        '';
      };
    })
  ];
}
