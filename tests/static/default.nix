# The checks that need no machine: lints, documentation, the modules as they are evaluated, and the arguments of
# buildImage.
{ pkgs, home-manager }:

let
  inherit (pkgs) lib;

  nixFiles = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.difference
      (lib.fileset.fileFilter (file: file.hasExt "nix") ../..)
      (lib.fileset.maybeMissing ../../build);
  };
  # A program that fails when something is wrong with the Nix files.
  check = name: command: pkgs.runCommand "check-${name}" { nativeBuildInputs = [ pkgs.${name} ]; } ''
    ${command} ${nixFiles}
    touch $out
  '';

  golden = import ../modules/golden.nix { inherit pkgs home-manager; };

  # What has scripts.
  scripts = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.unions [ ../../dev ../../tests (lib.fileset.maybeMissing ../../.ci) ];
  };

  reference = (import ../../modules/reference.nix { inherit lib pkgs; }).text;

  failures = lib.runTests (import ./image-arguments.nix {
    inherit lib;
    known = lib.attrNames (lib.functionArgs pkgs.nix-snapshotter.buildImage);
  });
in
{
  inherit (pkgs.nix-snapshotter.tests) clippy rustdoc rustfmt;

  modules = (import ../modules { inherit pkgs home-manager; }).check;

  golden =
    if golden.stale == [ ] then pkgs.emptyFile
    else throw "tests/golden is not of the modules: run make docs. It is about ${toString golden.stale}";

  docs = pkgs.runCommand "check-docs" { } ''
    diff -u ${../../docs/configuration.md} ${pkgs.writeText "configuration.md" reference} ||
      { echo "docs/configuration.md is not of the options: run make docs" && exit 1; }
    touch $out
  '';

  nixpkgs-fmt = check "nixpkgs-fmt" "nixpkgs-fmt --check";
  deadnix = check "deadnix" "deadnix --fail";

  shellcheck = pkgs.runCommand "check-shellcheck" { nativeBuildInputs = [ pkgs.shellcheck ]; } ''
    cd ${scripts}
    source dev/lib/scripts.sh
    mapfile -t found < <(grep --recursive --files-with-matches -E "$script_shebang" . | scripts_among)
    ((''${#found[@]} > 0))
    shellcheck --external-sources --check-sourced "''${found[@]}"
    touch $out
  '';

  image-arguments =
    if failures == [ ] then pkgs.emptyFile
    else throw "The arguments of buildImage: ${lib.generators.toPretty { } failures}";
}
