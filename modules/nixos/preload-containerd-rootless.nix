{
  imports = [ ../common/preload-containerd-rootless.nix ./user-services.nix ./rootless.nix ];
}
