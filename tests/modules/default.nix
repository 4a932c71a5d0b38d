# The modules, evaluated with many configurations: what comes out, and what is refused in which words.
#
# Gives the `names` of all tests; their `failures`, the descriptions of what does not hold by the name of the test; and the
# names of those that are `skipped`, because `home-manager` is null. No package is built for it.
#
# Snippets of the documentation are written to the store to be imported, which `nix flake check` without building refuses:
# there `snippets` is false.
{ pkgs, lib ? pkgs.lib, home-manager, snippets ? false }:
let
  evaluate = import ./evaluate.nix { inherit lib pkgs home-manager; };

  # Each file is a subject. A test is a configuration, and checks by their descriptions, which are to be true.
  tests = lib.concatMapAttrs
    (file: _: lib.mapAttrs'
      (name: lib.nameValuePair "${lib.removeSuffix ".nix" file}: ${name}")
      (import (./cases + "/${file}") { inherit lib pkgs evaluate checks; }))
    (builtins.removeAttrs (builtins.readDir ./cases) (lib.optional (!snippets) "documentation.nix"));

  # What tells a check may quote a result, and with it store paths, which no attribute's name may carry.
  holds = description: value: { ${builtins.unsafeDiscardStringContext description} = value; };
  hold = describe: check: values:
    lib.mergeAttrsList (map (value: holds (describe value) (check value)) values);
  quoted = texts: "«${toString texts}»";

  checks = {
    # The configuration is accepted, and without a word.
    accepted = result:
      holds "no assertion fails, but ${quoted result.refusals}" (result.refusals == [ ])
      // holds "no warning, but ${quoted result.warnings}" (result.warnings == [ ]);

    # It is refused in one message, which has all of `words`.
    refused = words: result:
      holds "one assertion fails, but ${quoted result.refusals}" (builtins.length result.refusals == 1)
      // hold (word: "it has «${word}», but ${quoted result.refusals}") (has result.refusals) words;

    # It is accepted with one warning, which has all of `words`.
    warned = words: result:
      holds "no assertion fails, but ${quoted result.refusals}" (result.refusals == [ ])
      // holds "one warning, but ${quoted result.warnings}" (builtins.length result.warnings == 1)
      // hold (word: "it has «${word}», but ${quoted result.warnings}") (has result.warnings) words;

    # The text of a unit has each of the lines.
    lines = wanted: text:
      hold (line: "there is a line «${line}» in ${quoted text}") (line: lib.elem line (lib.splitString "\n" text)) wanted;
  };

  has = messages: word: lib.any (message: lib.hasInfix word (flat message)) messages;
  # A message is wrapped where its source is.
  flat = lib.replaceStrings [ "\n" ] [ " " ];

  isOfHomeManager = name: lib.hasInfix "Home Manager" name;
  skipped = lib.optionals (home-manager == null) (lib.filter isOfHomeManager (lib.attrNames tests));
  run = builtins.removeAttrs tests skipped;

  failures = lib.filterAttrs (_: failed: failed != [ ])
    (lib.mapAttrs (_: test: lib.attrNames (lib.filterAttrs (_: value: !value) test)) run);
in
{
  inherit failures skipped;
  names = lib.attrNames run;

  # For `nix flake check`.
  check =
    if failures == { }
    then pkgs.runCommand "module-tests" { } "touch $out"
    else throw "module tests fail: ${builtins.toJSON failures}";
}
