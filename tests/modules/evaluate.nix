# Evaluates a configuration of NixOS or Home Manager, and gives of it what tests look at.
{ lib, pkgs, home-manager }:
let
  modules = import ../../modules;

  result = config: {
    inherit config;
    # What would stop a rebuild, and what it would say beside.
    refusals = map (assertion: assertion.message) (lib.filter (assertion: !assertion.assertion) config.assertions);
    inherit (config) warnings;
    userServices = config.systemd.user.services;
  };

  texts = lib.mapAttrs (_: unit: unit.text);
in
{
  nixos = module:
    let
      inherit (import (pkgs.path + "/nixos/lib/eval-config.nix") {
        inherit lib;
        system = null;
        modules = lib.attrValues modules.nixos ++ [
          {
            nixpkgs.pkgs = pkgs;
            boot.loader.grub.enable = false;
            fileSystems."/".device = "/dev/disk/by-label/nixos";
            system.stateVersion = lib.trivial.release;
          }
          module
        ];
      }) config;
    in
    result config // {
      units = texts config.systemd.units;
      userUnits = texts config.systemd.user.units;
    };

  homeManager = module:
    let
      hmLib = import (home-manager + "/modules/lib/stdlib-extended.nix") lib;
      inherit (hmLib.evalModules {
        class = "homeManager";
        specialArgs.modulesPath = home-manager + "/modules";
        modules =
          import (home-manager + "/modules/modules.nix")
            {
              inherit pkgs;
              lib = hmLib;
              check = true;
            }
          ++ lib.attrValues modules.homeManager
          ++ [
            module
            {
              home = lib.mapAttrs (_: lib.mkDefault) {
                username = "alice";
                homeDirectory = "/home/alice";
                stateVersion = lib.trivial.release;
              };
            }
          ];
      }) config;
    in
    result config;
}
