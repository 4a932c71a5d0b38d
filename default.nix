# The outputs of flake.nix for Nix without flakes, on the inputs that flake.lock pins:
#
#   nix-build
#   nix-build --attr packages.x86_64-linux.image-hello
#   imports = [ (import "${nix-snapshotter}").nixosModules.default ];
let
  inherit ((builtins.fromJSON (builtins.readFile ./flake.lock))) nodes;

  fetch = name: with nodes.${name}.locked; builtins.fetchTarball {
    url = "https://github.com/${owner}/${repo}/archive/${rev}.tar.gz";
    sha256 = narHash;
  };

  # What Nix makes of a flake, as far as flake.nix asks for it.
  flake = source: inputs:
    let
      self = outputs // { outPath = toString source; };
      outputs = (import "${toString source}/flake.nix").outputs (inputs // { inherit self; });
    in
    self;

  nixpkgs = flake (fetch "nixpkgs") { };
  home-manager = flake (fetch "home-manager") { inherit nixpkgs; };
  self = flake ./. { inherit nixpkgs home-manager; };
in
removeAttrs self [ "outPath" ] // { inherit (self.packages.${builtins.currentSystem}) default; }
