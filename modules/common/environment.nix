# Lines for a login shell that set variables which are not set yet. In the values, `$NAME` is expanded by the shell.
{ lib }:
variables:
lib.concatStrings (lib.mapAttrsToList
  (name: value: lib.optionalString (value != "") ''
    if [ -z "''${${name}:-}" ]; then
      export ${name}="${value}"
    fi
  '')
  variables)
