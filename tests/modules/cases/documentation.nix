# What the documentation shows, as it stands there.
{ lib, pkgs, evaluate, checks }:
let
  snippets = import ../snippets.nix { inherit lib pkgs evaluate; };
  services = result: lib.attrNames (result.config.systemd.services or { }) ++ lib.attrNames result.userServices;
in
lib.mapAttrs
  (_: result:
  if result ? drvPath
  then { "it is a package" = lib.hasSuffix ".drv" result.drvPath; }
  else
    checks.accepted result // {
      "it sets the daemon up" = lib.elem "nix-snapshotter" (services result);
    })
  snippets
