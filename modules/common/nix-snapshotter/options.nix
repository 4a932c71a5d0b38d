# The options that the rootful and the rootless daemon have in common.
{ lib, pkgs, rootless, nix ? pkgs.nix }:
let
  inherit (lib) literalExpression mkOption types;
  toml = pkgs.formats.toml { };

  # nixpkgs has the Go project under the same name: where the overlay is not used, this tree is built.
  package =
    if pkgs ? nix-snapshotter && pkgs.nix-snapshotter ? checkConfig
    then pkgs.nix-snapshotter
    else pkgs.callPackage ../../../pkgs/nix-snapshotter.nix { };
in
{
  package = lib.mkPackageOption { nix-snapshotter = package; } "nix-snapshotter" { pkgsText = "pkgs"; }
    // { example = literalExpression "pkgs.nix-snapshotter.overrideAttrs { doCheck = false; }"; };

  path = mkOption {
    type = types.listOf (types.either types.package types.path);
    default = [ nix ];
    defaultText = literalExpression (if rootless then "[ pkgs.nix ]" else "[ config.nix.package ]");
    example = literalExpression "[ pkgs.nix pkgs.openssh ]";
    description = ''
      What the daemon finds on its PATH. It needs `nix-store`, and whatever `settings.external_builder` calls by name.
    '';
  };

  snapshotterName = mkOption {
    type = types.strMatching "[A-Za-z0-9]+([._-][A-Za-z0-9]+)*";
    default = "nix";
    example = "nix-store";
    description = ''
      The name by which containerd and its clients know the snapshotter. The images of one name are not seen under
      another. k3s from 1.35.3 on has a snapshotter of its own called `nix`, so that its embedded containerd needs
      another name.
    '';
  };

  settings = mkOption {
    type = types.submoduleWith {
      # The library's own words for it are not those of 25.05 any more.
      inherit (toml.type) description;
      shorthandOnlyDefinesConfig = true;
      modules = [ (import ./settings.nix { inherit lib toml rootless; }) ];
    };
    default = { };
    example = literalExpression ''
      {
        socket_group = "wheel";
        metrics.address = "127.0.0.1:9600";
      }
    '';
    description = ''
      The daemon's configuration file. It is checked when the system is built: a key that the daemon does not know is an
      error there.
    '';
  };

  configFile = mkOption {
    type = types.nullOr types.path;
    default = null;
    example = "/etc/nix-snapshotter/config.toml";
    description = ''
      A configuration file to use in place of `settings`. What others than the daemon are told is still that of `settings`,
      which therefore has to agree with the file: `address`, `root`, `overlay`, `remap_ids` and `image_service`.${
        lib.optionalString rootless "\nUnless it is `null` here, `root` wins over the file."}
    '';
  };
}
