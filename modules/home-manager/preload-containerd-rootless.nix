{
  imports = [ ../common/preload-containerd-rootless.nix ./user-services.nix ];
}
