# The store content of the tests and of the commands in the Makefile. The attribute names are the names of the garbage
# collector's roots that ./build makes.
{ graph ? null # What ./graph prints on a Debian system; null takes nixpkgs.
}:
let
  source = if graph == null then import ./nixpkgs.nix else import ./debian.nix { inherit graph; };
  inherit (source) busybox closureInfo hello redis;
in
{
  inherit busybox hello redis;
  busybox-closure-info = closureInfo busybox;
  hello-closure-info = closureInfo hello;
  redis-closure-info = closureInfo redis;
}
