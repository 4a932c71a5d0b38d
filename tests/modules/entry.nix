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
  line = text: "${text}\n";
in
{
  # A line for each test, and below it what does not hold.
  report = lib.concatMapStrings
    (name:
      let failures = tests.failures.${name} or [ ]; in
      line "${if failures == [ ] then "ok" else "FAILED"} ${name}" + lib.concatMapStrings (what: line "    ${what}") failures)
    tests.names
  + lib.concatMapStrings (name: line "SKIPPED: ${name}: there is no Home Manager") tests.skipped;

  # For `nix eval --write-to`, which makes a directory of it.
  golden = lib.foldl' lib.recursiveUpdate { } (lib.mapAttrsToList
    (path: text: lib.setAttrByPath (lib.splitString "/" path) text)
    (import ./golden.nix { inherit pkgs home-manager; }));
  # With other modules of nixpkgs, what they have in a unit is another thing.
  goldenRelease = "25.05";
  inherit (lib.trivial) release;

  reference = (import ../../modules/reference.nix { inherit lib pkgs; }).text;
}
