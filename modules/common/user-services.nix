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

    packages = lib.mkOption {
      type = lib.types.listOf lib.types.package;
      default = [ ];
      internal = true;
      description = "Programs for users to call.";
    };

    files = lib.mkOption {
      type = lib.types.attrsOf lib.types.path;
      default = { };
      internal = true;
      description = "Files for these programs, by their names in `directory`.";
    };

    directory = lib.mkOption {
      type = lib.types.str;
      internal = true;
      description = "Where `files` are.";
    };

    variables = lib.mkOption {
      type = lib.types.attrsOf lib.types.str;
      default = { };
      internal = true;
      description = "Variables of login shells.";
    };
  };
}
