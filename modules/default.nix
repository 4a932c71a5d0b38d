# All modules by name. The services configure one another, so that each name stands for all of them: nothing is on unless
# it is enabled, and an option that is set has what it needs.
let
  named = path: names: builtins.listToAttrs (map (name: { inherit name; value = path; }) names);
  rootless = [
    "containerd-rootless"
    "k3s-rootless"
    "nix-snapshotter-rootless"
    "preload-containerd-rootless"
  ];
in
{
  nixos = named ./nixos ([ "containerd" "k3s" "nix-snapshotter" "preload-containerd" ] ++ rootless);
  homeManager = named ./home-manager rootless;
}
