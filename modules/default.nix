# All modules by name. `flake.nix` and `default.nix` give each of them, and `default`, which imports all.
{
  nixos = {
    containerd = ./nixos/containerd.nix;
    containerd-rootless = ./nixos/containerd-rootless.nix;
    k3s = ./nixos/k3s.nix;
    k3s-rootless = ./nixos/k3s-rootless.nix;
    nix-snapshotter = ./nixos/nix-snapshotter.nix;
    nix-snapshotter-rootless = ./nixos/nix-snapshotter-rootless.nix;
    preload-containerd = ./nixos/preload-containerd.nix;
    preload-containerd-rootless = ./nixos/preload-containerd-rootless.nix;
  };

  homeManager = {
    containerd-rootless = ./home-manager/containerd-rootless.nix;
    k3s-rootless = ./home-manager/k3s-rootless.nix;
    nix-snapshotter-rootless = ./home-manager/nix-snapshotter-rootless.nix;
    preload-containerd-rootless = ./home-manager/preload-containerd-rootless.nix;
  };
}
