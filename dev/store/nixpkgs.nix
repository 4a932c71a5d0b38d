# The same programs from nixpkgs, for a machine that is not Debian.
let
  pkgs = import <nixpkgs> { };
in
{
  inherit (pkgs) hello redis;
  # Static: it stands in ordinary images too, which have no store.
  inherit (pkgs.pkgsStatic) busybox;
  closureInfo = root: pkgs.closureInfo { rootPaths = [ root ]; };
}
