# The daemon as a service of a user, in the namespaces of that user's containerd or k3s.
{ config, lib, pkgs, ... }:
let
  cfg = config.services.nix-snapshotter.rootless;
  containerd = config.virtualisation.containerd.rootless;
  k3s = config.services.k3s.rootless;

  units = import ./nix-snapshotter/unit.nix { inherit lib pkgs; };
  inherit (import ./nix-snapshotter/config-file.nix { inherit lib pkgs; } cfg) file;
  checks = import ./nix-snapshotter/checks.nix { inherit lib; } {
    inherit cfg;
    prefix = "services.nix-snapshotter.rootless";
    foreignRoots = [ "/var/lib/containerd" "/var/lib/containerd/io.containerd.snapshotter.v1.nix" ];
  };
  inK3s = k3s.enable && k3s.snapshotter == "nix";
in
{
  options.services.nix-snapshotter.rootless =
    import ./nix-snapshotter/options.nix
      {
        inherit lib pkgs;
        rootless = true;
      }
    // {
      enable = lib.mkEnableOption ''
        nix-snapshotter as a service of each user, for the containerd of
        `virtualisation.containerd.rootless` or the k3s of `services.k3s.rootless`'';
    };

  config = lib.mkIf cfg.enable {
    services.nix-snapshotter.rootless.settings.image_service.snapshotter = lib.mkDefault cfg.snapshotterName;

    services.nix-snapshotter.userServices.units.nix-snapshotter = units.user ({
      inherit cfg;
      configFile = file;
    } // (if inK3s then {
      namespaces = "k3s.service";
      enter = "${k3s.nsenter}/bin/k3s-nsenter";
    } else {
      namespaces = "containerd-namespaces.service";
      enter = "${containerd.nsenter}/bin/containerd-nsenter";
    }));

    assertions = checks.assertions ++ [
      {
        assertion = containerd.enable || inK3s;
        message = ''
          services.nix-snapshotter.rootless.enable is set, but there is no containerd whose namespaces it could enter. Set
          virtualisation.containerd.rootless.enable = true, or services.k3s.rootless.enable = true with
          services.k3s.rootless.snapshotter = "nix".
        '';
      }
      {
        assertion = !(containerd.enable && containerd.nixSnapshotterIntegration && inK3s);
        message = ''
          virtualisation.containerd.rootless.nixSnapshotterIntegration and services.k3s.rootless.snapshotter = "nix" are both
          set: they have namespaces of their own, and one nix-snapshotter serves in one of them. Choose one of the two.
        '';
      }
    ];
    inherit (checks) warnings;
  };
}
