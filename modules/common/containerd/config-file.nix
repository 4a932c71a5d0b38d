# containerd's configuration file in the version that the package reads best, checked by that package.
{ lib, pkgs }:
{ package, settings }:
let
  inherit (import ./settings.nix { inherit lib; }) toVersion3;
  wanted =
    if lib.versionAtLeast package.version "2"
    then toVersion3 package.version settings
    else settings;
  file = (pkgs.formats.toml { }).generate "containerd-unchecked.toml" wanted;
in
{
  settings = wanted;

  file = pkgs.runCommand "containerd.toml" { nativeBuildInputs = [ package ]; } ''
    containerd --config ${file} config dump >/dev/null
    ln -s ${file} $out
  '';
}
