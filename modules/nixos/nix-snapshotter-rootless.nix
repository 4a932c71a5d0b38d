{
  imports = [ ../common/nix-snapshotter-rootless.nix ./user-services.nix ./rootless.nix ];
}
