# The configuration file that the daemon is started with: the user's own, or `settings`, checked by the daemon.
{ lib, pkgs }:
cfg:
let
  set = lib.filterAttrsRecursive (_: value: value != null && value != { }) cfg.settings;
in
if cfg.configFile != null
then cfg.configFile
else cfg.package.checkConfig ((pkgs.formats.toml { }).generate "nix-snapshotter.toml" set)
