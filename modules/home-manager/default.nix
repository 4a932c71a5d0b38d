{
  imports = [
    ../common/rootless.nix
    ./user-services.nix
  ];
}
