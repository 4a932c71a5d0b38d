# What the tests look at containers with.
{ pkgs, ... }: {
  environment.systemPackages = [
    pkgs.containerd
    pkgs.nerdctl
    pkgs.nix-snapshotter
    pkgs.redis
  ];
}
