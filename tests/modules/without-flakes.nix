# default.nix and shell.nix, with the inputs at hand in the place of those that they would download: what is to hold, by
# its description.
{ lib, nixpkgs, home-manager }:
let
  inherit (lib.importJSON ../../flake.lock) nodes;
  # An input is known by its hash, and asked for at its place.
  inputs = lib.mapAttrs'
    (name: source: with nodes.${name}.locked; lib.nameValuePair narHash {
      inherit source;
      url = "https://github.com/${owner}/${repo}/archive/${rev}.tar.gz";
    })
    { inherit nixpkgs home-manager; };
  fetchTarball = { url, sha256 }:
    let input = inputs.${sha256}; in
    assert url == input.url;
    input.source;

  outputs = builtins.scopedImport { builtins = builtins // { inherit fetchTarball; }; } ../../default.nix;
  shell = builtins.scopedImport { import = path: assert path == ../..; outputs; } ../../shell.nix;

  system = builtins.currentSystem;
  isPackage = it: lib.hasSuffix ".drv" it.drvPath;
in
{
  "the package" = isPackage outputs.packages.${system}.nix-snapshotter;
  "it is what nix-build takes" = outputs.default.drvPath == outputs.packages.${system}.nix-snapshotter.drvPath;
  "an image" = isPackage outputs.packages.${system}.image-hello;
  "a function" = isPackage (outputs.lib.${system}.buildImage { name = "hello"; });
  "the overlay" = lib.isFunction outputs.overlays.default;
  "the modules of NixOS" = outputs.nixosModules.default == { imports = lib.attrValues (import ../../modules).nixos; };
  "the modules of Home Manager" = outputs.homeModules.default == { imports = lib.attrValues (import ../../modules).homeManager; };
  "a check" = isPackage outputs.checks.${system}.image-arguments;
  "the shell" = isPackage shell;
  "no path of its own" = !(outputs ? outPath);
}
