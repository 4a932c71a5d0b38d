# A systemd service as plain data, and what NixOS, Home Manager and other distributions want to have of it.
#
#   description, wantedBy             as NixOS has them
#   after, before, wants, bindsTo …   lists of units
#   restartIfChanged                  false for a service that outlives a change of its unit
#   unit                              further directives of [Unit]
#   path, environment                 packages on the PATH, and variables
#   service                           directives of [Service]
{ lib }:
let
  relations = {
    after = "After";
    before = "Before";
    bindsTo = "BindsTo";
    partOf = "PartOf";
    wants = "Wants";
  };

  # The directives of a unit by its sections.
  sections = environment: unit: {
    Unit =
      { Description = unit.description; }
      // lib.mapAttrs' (name: directive: lib.nameValuePair directive unit.${name})
        (lib.filterAttrs (name: _: unit ? ${name}) relations)
      // unit.unit or { };
    Install.WantedBy = unit.wantedBy;
    Service =
      { Environment = lib.mapAttrsToList (name: value: "\"${name}=${value}\"") environment; } // unit.service;
  };
in
{
  # A value of `systemd.services` or `systemd.user.services` of NixOS.
  toNixOS = unit:
    builtins.removeAttrs unit [ "unit" "service" ] // {
      unitConfig = unit.unit or { };
      serviceConfig = unit.service;
    };

  # A value of `systemd.user.services` of Home Manager.
  toHomeManager = pkgs: unit:
    let
      # As on NixOS, which adds these to the path of each service (`nixos/lib/systemd-lib.nix`): what a service calls is
      # there on both.
      path = unit.path or [ ] ++ [ pkgs.coreutils pkgs.findutils pkgs.gnugrep pkgs.gnused pkgs.systemd ];
    in
    lib.recursiveUpdate
      (sections ({ PATH = lib.makeBinPath (lib.unique path); } // unit.environment or { }) unit)
      (lib.optionalAttrs (!unit.restartIfChanged or true) { Unit.X-SwitchMethod = "keep-old"; });

  # The file of a unit that is given by its sections.
  toText = lib.generators.toINI { listsAsDuplicateKeys = true; };

  # For other distributions. A path of packages is of no use there, and the unit says its own in `environment`.
  toOthers = unit:
    let it = sections unit.environment unit; in
    it // { Unit = lib.mapAttrs (_: toString) it.Unit; };
}
