# Adds nix-snapshotter to nixpkgs, in the place of nixpkgs' own package of that name, the Go project.
final: _prev: {
  nix-snapshotter = final.callPackage ./nix-snapshotter.nix { };
}
