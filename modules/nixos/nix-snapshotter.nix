# The daemon as a service of the system.
{ config, lib, options, pkgs, ... }:
let
  cfg = config.services.nix-snapshotter;
  containerd = config.virtualisation.containerd;
  inherit (cfg) settings;
  inherit (import ../common/unit.nix { inherit lib; }) toNixOS;
  units = import ../common/nix-snapshotter/unit.nix { inherit lib pkgs; };
  inherit (import ../common/nix-snapshotter/config-file.nix { inherit lib pkgs; } cfg) file;

  containerdOfK3s = "/var/lib/rancher/k3s/agent/containerd";
  checks = import ../common/nix-snapshotter/checks.nix { inherit lib; } {
    inherit cfg;
    inherit (options.services.nix-snapshotter.settings) definitions;
    prefix = "services.nix-snapshotter";
    containers = [ (containerd.settings.root or "/var/lib/containerd") containerdOfK3s ];
    # That of the snapshotter which k3s has built in; and of the daemon of users, where it has one for all.
    foreign = [ "${containerdOfK3s}/io.containerd.snapshotter.v1.nix" ]
      ++ lib.optional (cfg.rootless.enable && cfg.rootless.settings.root != null) cfg.rootless.settings.root;
  };

  paths = lib.filterAttrs (_: path: path != null) {
    inherit (settings) address root;
    "metrics.address" = settings.metrics.address;
    "image_service.containerd_address" = settings.image_service.containerd_address;
  };
  hidden = lib.filterAttrs (_: path: builtins.match "(unix://)?/(var/)?tmp/.*" path != null) paths;

  group = settings.socket_group;
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
      lib.optionalAttrs (!(lib.hasPrefix "/var/lib/" settings.root)) { ${settings.root}.d.mode = "0700"; }
      # Whoever's they are: what is there already stays as it is.
      // lib.genAttrs (units.foreignDirectories cfg) (_: { d = { }; });

    # Which options its overlays have is seen once the module is loaded.
    boot.kernelModules = [ "overlay" ];

    # For `nix-snapshotter status`, `nix-snapshotter doctor` and nix2container.
    environment = {
      systemPackages = [ cfg.package ];
      etc = lib.mkIf (toString cfg.configFile != "/etc/nix-snapshotter/config.toml") {
        "nix-snapshotter/config.toml".source = file;
      };
    };

    assertions = checks.assertions ++ [
      {
        assertion = config.nix.enable;
        message = ''
          services.nix-snapshotter.enable needs a Nix store and its daemon, but nix.enable is false. Set it to true.
        '';
      }
      {
        assertion = hidden == { };
        message = ''
          services.nix-snapshotter.settings.${lib.concatStringsSep ", and " (lib.mapAttrsToList (name: path: "${name} is ${path}") hidden)}:
          the daemon has a /tmp of its own, which nobody else sees. Choose a place below /run for sockets, and below
          /var/lib for the root.
        '';
      }
      {
        assertion = group == null || builtins.match "[0-9]+" group != null || config.users.groups ? ${group};
        message = ''
          services.nix-snapshotter.settings.socket_group is ${toString group}, a group that this machine does not have, and
          the daemon would not start. Set users.groups.${toString group} = { }, or name another one.
        '';
      }
    ];
    inherit (checks) warnings;
  };
}
