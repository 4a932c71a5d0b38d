# The closure of a store path as a directory, of the shape of nixpkgs' closureInfo: `store-paths` has one path a line,
# `registration` is what `nix-store --load-db` reads, `total-nar-size` is in bytes.
root: derivation {
  name = "closure-info";
  system = builtins.currentSystem;
  builder = "/bin/bash";
  args = [ ./closure-info.sh ];
  PATH = "/usr/sbin:/usr/bin";
  __structuredAttrs = true;
  exportReferencesGraph.closure = [ root ];
}
