# Where the rootless modules put what NixOS and Home Manager each render in their own way.
{ lib, ... }:
{
  options.services.nix-snapshotter.userServices = {
    units = lib.mkOption {
      type = lib.types.attrsOf lib.types.raw;
      default = { };
      internal = true;
      description = "Services of the user manager, as described in `unit.nix`.";
    };

    variables = lib.mkOption {
      type = lib.types.attrsOf lib.types.str;
      default = { };
      internal = true;
      description = "Variables of login shells.";
    };
  };
}
