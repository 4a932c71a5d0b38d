{
  imports = [ ../common/k3s-rootless.nix ./user-services.nix ./rootless.nix ];
}
