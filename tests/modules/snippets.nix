# The snippets of the documentation: what stands in a block of code below a line `<!-- KIND -->`.
{ lib, evaluate, pkgs }:
let
  top = ../..;
  files = map (name: "docs/${name}") (lib.filter (lib.hasSuffix ".md") (lib.attrNames (builtins.readDir (top + "/docs"))))
    ++ [ "README.md" "CONTRIBUTING.md" ];

  # [ { name = "installation.md, nixos 1"; kind = "nixos"; text = "{ … }"; } … ]
  snippetsOf = file:
    let
      parts = builtins.split "<!-- ([a-z-]+) -->\n```nix\n" (builtins.readFile (top + "/${file}"));
      snippet = index: {
        name = "${file}: ${toString ((index + 1) / 2)}, ${lib.head (lib.elemAt parts index)}";
        kind = lib.head (lib.elemAt parts index);
        text = lib.head (lib.splitString "\n```" (lib.elemAt parts (index + 1)));
      };
    in
    map snippet (lib.filter (index: builtins.isList (lib.elemAt parts index)) (lib.range 0 (builtins.length parts - 1)));

  # Snippets fetch this project, which is here, and say which release they are of.
  replacements = {
    "import (fetchTarball \"https://github.com/OWNER/nix-snapshotter/archive/main.tar.gz\")" = "{ nixosModules.default = { }; homeModules.default = { }; }";
    "./hardware-configuration.nix" = "{ }";
    "stateVersion = \"26.05\"" = ''stateVersion = "${lib.trivial.release}"'';
  };
  imported = snippet: builtins.scopedImport { inherit hello pkgs self; nix-snapshotter = project; } (builtins.toFile "snippet.nix"
    (lib.replaceStrings (lib.attrNames replacements) (lib.attrValues replacements) snippet.text));

  project = {
    overlays.default = import ../../pkgs/overlay.nix;
    nixosModules.default = { };
    homeModules.default = { };
  };

  # What the pages call so.
  hello = pkgs.nix-snapshotter.buildImage { name = "hello"; };
  self.packages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: {
    hello = pkgs.nix-snapshotter.buildImage {
      name = "hello";
      platform = { x86_64-linux = "linux/amd64"; aarch64-linux = "linux/arm64"; }.${system};
    };
  });

  of = {
    package = snippet: { inherit (imported snippet) drvPath; };

    nixos = snippet: evaluate.nixos {
      imports = [ (imported snippet) ];
      _module.args.nix-snapshotter = project;
      # Before 26.05, its image is fetched from a registry.
      services.kubernetes.addons.dns.enable = false;
    };

    home-manager = snippet: evaluate.homeManager (imported snippet);

    # Its only configuration.
    flake = snippet:
      let
        outputs = (imported snippet).outputs {
          self = outputs;
          nixpkgs = {
            lib.nixosSystem = { modules, ... }: evaluate.nixos { imports = modules; };
            legacyPackages.x86_64-linux = pkgs;
          };
          home-manager.lib.homeManagerConfiguration = { modules, ... }: evaluate.homeManager { imports = modules; };
          nix-snapshotter = project;
        };
      in
      lib.head (lib.attrValues (outputs.nixosConfigurations or outputs.homeConfigurations));
  };

  # A block of Nix that no test would look at. The reference of the options has examples of values instead.
  unmarked = lib.filter
    (file: file != "docs/configuration.md"
      && builtins.length (lib.splitString "```nix\n" (builtins.readFile (top + "/${file}"))) - 1
      != builtins.length (snippetsOf file))
    files;
in
assert lib.assertMsg (unmarked == [ ]) "there are blocks of Nix without a line <!-- KIND --> above: ${toString unmarked}";
lib.listToAttrs (map
  (snippet: lib.nameValuePair snippet.name (of.${snippet.kind} snippet))
  (lib.concatMap snippetsOf files))
