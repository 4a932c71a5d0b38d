# A systemd service as plain data, and what NixOS and Home Manager want to have of it.
#
#   description, wantedBy             as NixOS has them
#   after, before, wants, bindsTo …   lists of units
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
  toHomeManager = unit:
    let
      environment =
        lib.optionalAttrs (unit ? path) { PATH = lib.makeBinPath unit.path; } // unit.environment or { };
    in
    {
      Unit =
        { Description = unit.description; }
        // lib.mapAttrs' (name: directive: lib.nameValuePair directive unit.${name})
          (lib.filterAttrs (name: _: unit ? ${name}) relations)
        // unit.unit or { };
      Install.WantedBy = unit.wantedBy;
      Service =
        lib.optionalAttrs (environment != { })
          { Environment = lib.mapAttrsToList (name: value: "\"${name}=${value}\"") environment; }
        // unit.service;
    };
}
