# The daemon's configuration: what of `settings` is set, and the file that it is started with, which it has checked itself.
{ lib, pkgs }:
cfg:
let
  withoutNulls = lib.filterAttrsRecursive (_: value: value != null) cfg.settings;
  settings = lib.filterAttrs (_: value: value != { }) withoutNulls;
in
{
  inherit settings;

  file =
    if cfg.configFile != null
    then cfg.configFile
    else cfg.package.checkConfig ((pkgs.formats.toml { }).generate "nix-snapshotter-unchecked.toml" settings);
}
