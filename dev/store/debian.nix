# Programs of the Debian system that this is evaluated on, as store paths: one path a package, with references to the
# packages whose libraries it loads. It gives real closures where no binary cache can be reached.
{ graph # What ./graph prints.
}:
let
  nodes = builtins.fromJSON graph;

  # A Debian version may have a tilde, which a store path name may not.
  storeName = name: version: "${name}-${builtins.replaceStrings [ "~" ] [ "-" ] version}";

  store = builtins.mapAttrs
    (name: node: derivation {
      name = storeName name node.version;
      system = builtins.currentSystem;
      builder = "/bin/bash";
      args = [ ./repackage.sh ];
      PATH = "/usr/sbin:/usr/bin";
      inherit (node) packages;
      libraries = map (library: store.${library}) node.libraries;
    })
    nodes;
in
{
  inherit (store) busybox hello redis;
  closureInfo = import ./closure-info.nix;
}
