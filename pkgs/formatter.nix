# `nix fmt`: nixpkgs-fmt, on the whole tree unless files are named, since it reads standard input otherwise.
{ nixpkgs-fmt, writeShellScriptBin }:

writeShellScriptBin "nixpkgs-fmt" ''
  (($# > 0)) || set -- .
  exec ${nixpkgs-fmt}/bin/nixpkgs-fmt "$@"
''
