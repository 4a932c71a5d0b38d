{
  imports = [
    ../common/rootless.nix
    ./containerd.nix
    ./k3s.nix
    ./nix-snapshotter.nix
    ./preload-containerd.nix
    ./rootless.nix
    ./user-services.nix
  ];
}
