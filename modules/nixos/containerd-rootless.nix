{
  imports = [ ../common/containerd-rootless.nix ./user-services.nix ./rootless.nix ];
}
