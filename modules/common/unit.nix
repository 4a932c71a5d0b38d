# A systemd service as plain data, and what NixOS and Home Manager want to have of it.
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
      # NixOS puts the latter on the PATH of every service.
      path = unit.path or [ ] ++ [ pkgs.coreutils pkgs.findutils pkgs.gnugrep pkgs.gnused pkgs.systemd ];
      environment = { PATH = lib.makeBinPath path; } // unit.environment or { };
    in
    {
      Unit =
        { Description = unit.description; }
        // lib.mapAttrs' (name: directive: lib.nameValuePair directive unit.${name})
          (lib.filterAttrs (name: _: unit ? ${name}) relations)
        // lib.optionalAttrs (!unit.restartIfChanged or true) { X-SwitchMethod = "keep-old"; }
        // unit.unit or { };
      Install.WantedBy = unit.wantedBy;
      Service =
        { Environment = lib.mapAttrsToList (name: value: "\"${name}=${value}\"") environment; }
        // unit.service;
    };
}
