{
  description = "Containers straight from a Nix store: a containerd snapshotter, a builder of images, and modules";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

    # For the tests alone: nothing else evaluates it.
    home-manager.url = "github:nix-community/home-manager/release-26.05";
    home-manager.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs = { self, nixpkgs, home-manager }:
    let
      inherit (nixpkgs) lib;

      pkgsFor = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: import nixpkgs {
        inherit system;
        overlays = [ self.overlays.default ];
      });
      forEachSystem = f: lib.mapAttrs (_: f) pkgsFor;

      modules = import ./modules;
      # With no function of nixpkgs, which default.nix would fetch for it.
      withDefault = each: each // { default.imports = builtins.attrValues each; };

      examples = pkgs: import ./pkgs/examples.nix { inherit pkgs; };
      named = prefix: lib.mapAttrs' (name: lib.nameValuePair "${prefix}-${name}");

      machines = pkgs: lib.mapAttrs
        (_: machine: lib.nixosSystem {
          modules = [ self.nixosModules.default machine { nixpkgs = { inherit pkgs; }; } ];
        })
        (import ./vm.nix);

      machineTests = pkgs: import ./tests/nixos {
        inherit pkgs home-manager;
        inherit (self) nixosModules homeModules;
      };
    in
    {
      overlays.default = import ./pkgs/overlay.nix;

      nixosModules = withDefault modules.nixos;
      homeModules = withDefault modules.homeManager;
      homeManagerModules = self.homeModules;

      # How images are built, without the overlay: `nix-snapshotter.lib.x86_64-linux.buildImage { … }`.
      lib = forEachSystem (pkgs: {
        inherit (pkgs.nix-snapshotter) buildImage buildMultiPlatformImage;
      });

      packages = forEachSystem (pkgs: {
        default = pkgs.nix-snapshotter;
        inherit (pkgs) containerd k3s nix-snapshotter;
      } // named "image" (examples pkgs));

      k8sResources = forEachSystem (pkgs: import ./pkgs/kubernetes-resources.nix { inherit pkgs; });

      nixosConfigurations = machines pkgsFor.x86_64-linux;

      apps = forEachSystem (pkgs: import ./pkgs/apps.nix {
        inherit lib;
        inherit (pkgs) writeShellScript;
        examples = examples pkgs;
        machines = machines pkgs;
        tests = machineTests pkgs;
      });

      checks = forEachSystem (pkgs:
        named "test" (machineTests pkgs)
        // import ./tests/static { inherit pkgs home-manager; }
      );

      devShells = forEachSystem (pkgs: {
        default = pkgs.callPackage ./pkgs/dev-shell.nix { };
      });

      formatter = forEachSystem (pkgs: pkgs.callPackage ./pkgs/formatter.nix { });
    };
}
