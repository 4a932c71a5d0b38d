# The services of a user, for NixOS and Home Manager alike.
{
  imports = [
    ./containerd-rootless.nix
    ./k3s-rootless.nix
    ./nix-snapshotter-rootless.nix
    ./preload-containerd-rootless.nix
    ./user-services.nix
  ];
}
