{ config, lib, pkgs, ... }:
let
  cfg = config.services.nix-snapshotter.userServices;
  inherit (import ../common/unit.nix { inherit lib; }) toHomeManager;
  export = import ../common/environment.nix { inherit lib; };
in
{
  config = lib.mkMerge [
    { services.nix-snapshotter.userServices.directory = "${config.xdg.configHome}/nix-snapshotter"; }

    (lib.mkIf (cfg.units != { } || cfg.variables != { }) {
      systemd.user.services = lib.mapAttrs (_: toHomeManager pkgs) cfg.units;

      home.packages = cfg.packages;
      home.sessionVariablesExtra = export cfg.variables;
      xdg.configFile = lib.mapAttrs'
        (name: source: lib.nameValuePair "nix-snapshotter/${name}" { inherit source; })
        cfg.files;
    })
  ];
}
