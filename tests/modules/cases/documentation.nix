# What the documentation shows, as it stands there.
{ lib, pkgs, evaluate, checks }:
let
  snippets = import ../snippets.nix { inherit lib pkgs evaluate; };
  inherit (import ../../../modules/reference.nix { inherit lib pkgs; }) bare examples;
  services = result: lib.attrNames (result.config.systemd.services or { }) ++ lib.attrNames result.userServices;
  value = text: builtins.scopedImport { inherit lib pkgs; } (builtins.toFile "example.nix" text);
in
{
  "examples of options" = lib.mapAttrs'
    (name: text: lib.nameValuePair "the example of ${name} is a value"
      (builtins.stringLength (builtins.toJSON (value text)) > 0))
    examples
  // { "every option has one, but ${toString bare}" = bare == [ ]; };
}
  // lib.mapAttrs
  (_: result:
    if result ? drvPath
    then { "it is a package" = lib.hasSuffix ".drv" result.drvPath; }
    else
      checks.accepted result // {
        "it sets the daemon up" = lib.elem "nix-snapshotter" (services result);
      })
  snippets
