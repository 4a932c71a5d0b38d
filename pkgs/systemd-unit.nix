# The file of the daemon's unit for other distributions than NixOS: that of the modules, as their options are by default.
# The configuration is /etc/nix-snapshotter/config.toml there, where the machine has one.
{ lib, pkgs }:

# Where the programs are: the package, or what stands for it.
package:

let
  units = import ../modules/common/nix-snapshotter/unit.nix { inherit lib pkgs; };
  inherit (import ../modules/common/unit.nix { inherit lib; }) toOthers toText;

  defaults = (lib.evalModules {
    modules = [{ options = import ../modules/common/nix-snapshotter/options.nix { inherit lib pkgs; rootless = false; }; }];
  }).config;
  unit = units.system {
    cfg = defaults // { inherit package; };
    configFile = null;
  };
in
toText (toOthers (unit // {
  # The Nix of the installer, and the programs of the machine.
  environment = unit.environment // {
    PATH = "/nix/var/nix/profiles/default/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  };
}))
