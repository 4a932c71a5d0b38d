{
  imports = [
    ../common/rootless.nix
    ./removed.nix
    ./user-services.nix
  ];
}
