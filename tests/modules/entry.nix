# What dev/test-nix and dev/docs evaluate, with <nixpkgs> and, where there is one, <home-manager>.
let
  pkgs = import <nixpkgs> { overlays = [ (import ../../pkgs/overlay.nix) ]; };
  inherit (pkgs) lib;
  found = builtins.tryEval <home-manager>;
  home-manager = if found.success then found.value else null;
  tests = import ./. {
    inherit pkgs home-manager;
    snippets = true;
  };
  golden = import ./golden.nix { inherit pkgs home-manager; };
  line = text: "${text}\n";
  result = name: failures:
    line "${if failures == [ ] then "ok" else "FAILED"} ${name}" + lib.concatMapStrings (what: line "    ${what}") failures;
  withoutFlakes = "default.nix and shell.nix";
in
{
  # A line for each test, and below it what does not hold.
  report = lib.concatMapStrings (name: result name (tests.failures.${name} or [ ])) tests.names
    + lib.concatMapStrings (name: line "SKIPPED: ${name}: there is no Home Manager")
    (tests.skipped ++ lib.optional (home-manager == null) withoutFlakes)
    + lib.optionalString (home-manager != null) (result withoutFlakes (lib.attrNames (lib.filterAttrs (_: value: !value)
    (import ./without-flakes.nix { inherit lib home-manager; nixpkgs = pkgs.path; }))));

  # For `nix eval --write-to`, which makes a directory of it.
  golden = lib.foldl' lib.recursiveUpdate { } (lib.mapAttrsToList
    (path: text: lib.setAttrByPath (lib.splitString "/" path) text)
    golden.texts);
  stale = lib.concatMapStrings line golden.stale;
  # Whether the modules of nixpkgs are those that tests/golden is made with.
  isRelease = lib.boolToString (lib.trivial.release == "25.05");

  reference = (import ../../modules/reference.nix { inherit lib pkgs; }).text;
}
