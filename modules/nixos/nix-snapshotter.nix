# The daemon as a service of the system.
{ config, lib, pkgs, ... }:
let
  cfg = config.services.nix-snapshotter;
  inherit (import ../common/unit.nix { inherit lib; }) toNixOS;
  units = import ../common/nix-snapshotter/unit.nix { inherit lib pkgs; };
  inherit (import ../common/nix-snapshotter/config-file.nix { inherit lib pkgs; } cfg) file;
  checks = import ../common/nix-snapshotter/checks.nix { inherit lib; } {
    inherit cfg;
    prefix = "services.nix-snapshotter";
    foreignRoots = [
      "/var/lib/containerd"
      "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs"
      "/var/lib/containerd/io.containerd.snapshotter.v1.native"
      # That of the snapshotter which k3s has built in.
      "/var/lib/rancher/k3s/agent/containerd/io.containerd.snapshotter.v1.nix"
    ];
  };
in
{
  options.services.nix-snapshotter =
    import ../common/nix-snapshotter/options.nix
      {
        inherit lib pkgs;
        nix = config.nix.package;
        rootless = false;
      }
    // {
      enable = lib.mkEnableOption "nix-snapshotter, a containerd snapshotter for Nix store paths";
    };

  config = lib.mkIf cfg.enable {
    services.nix-snapshotter.settings.image_service.snapshotter = lib.mkDefault cfg.snapshotterName;

    systemd.services.nix-snapshotter = toNixOS (units.system { inherit cfg; configFile = file; });

    systemd.tmpfiles.settings."10-nix-snapshotter" =
      lib.mkIf (!(lib.hasPrefix "/var/lib/" cfg.settings.root)) {
        ${cfg.settings.root}.d.mode = "0700";
      };

    # Which options its overlays have is seen once the module is loaded.
    boot.kernelModules = [ "overlay" ];

    # For `nix-snapshotter status`, `nix-snapshotter doctor` and nix2container.
    environment.systemPackages = [ cfg.package ];

    assertions = checks.assertions ++ [
      {
        assertion = config.nix.enable;
        message = ''
          services.nix-snapshotter.enable needs a Nix store and its daemon, but nix.enable is false. Set it to true.
        '';
      }
    ];
    inherit (checks) warnings;
  };
}
