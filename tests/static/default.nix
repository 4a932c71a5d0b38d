# The checks that need no machine: lints of the Rust workspace and of the Nix files, the documentation of the code, and
# the arguments of buildImage.
{ pkgs }:

let
  inherit (pkgs) lib;

  nixFiles = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.fileFilter (file: file.hasExt "nix") ../..;
  };
  # A program that fails when something is wrong with the Nix files.
  check = name: command: pkgs.runCommand "check-${name}" { nativeBuildInputs = [ pkgs.${name} ]; } ''
    ${command} ${nixFiles}
    touch $out
  '';

  failures = lib.runTests (import ./image-arguments.nix {
    inherit lib;
    known = lib.attrNames (lib.functionArgs pkgs.nix-snapshotter.buildImage);
  });
in
{
  inherit (pkgs.nix-snapshotter.tests) clippy;
  docs = pkgs.nix-snapshotter.tests.rustdoc;

  nixpkgs-fmt = check "nixpkgs-fmt" "nixpkgs-fmt --check";
  deadnix = check "deadnix" "deadnix --fail";

  image-arguments =
    if failures == [ ] then pkgs.emptyFile
    else throw "The arguments of buildImage: ${lib.generators.toPretty { } failures}";
}
