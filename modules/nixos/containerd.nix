# containerd as a service of the system: what is added to `virtualisation.containerd` of nixpkgs.
{ config, lib, pkgs, ... }:
let
  cfg = config.virtualisation.containerd;
  daemon = config.services.nix-snapshotter;
  kubelet = config.services.kubernetes.kubelet;

  settings = import ../common/containerd/settings.nix { inherit lib; };
  configFile = import ../common/containerd/config-file.nix { inherit lib pkgs; };
  mountPrograms = import ../common/nix-snapshotter/mount-programs.nix { inherit lib pkgs; };
  export = import ../common/environment.nix { inherit lib; };

  # nixpkgs has no option for it.
  package = pkgs.containerd;
  isVersion2 = lib.versionAtLeast package.version "2";
  file = toString (configFile { inherit package; inherit (cfg) settings; }).file;

  checks = import ../common/containerd/checks.nix { inherit lib; } {
    inherit cfg file package;
    prefix = "virtualisation.containerd";
    daemon = "services.nix-snapshotter";
  };

  cniPluginsOfK3s = pkgs.buildEnv {
    name = "k3s-cni-plugins";
    paths = [ pkgs.cni-plugins pkgs.cni-plugin-flannel ];
  };
in
{
  options.virtualisation.containerd =
    import ../common/containerd/options.nix
      {
        inherit lib;
        address = "/run/containerd/containerd.sock";
      }
    // {
      k3sIntegration = lib.mkEnableOption "this containerd, in place of its embedded one, for k3s";
    };

  config = lib.mkIf cfg.enable (lib.mkMerge [
    {
      systemd.services.containerd.path = cfg.path;

      virtualisation.containerd = {
        settings = settings.runtimes {
          inherit (cfg) defaultRuntime;
          cniBinDir = "${pkgs.cni-plugins}/bin";
        };
        # nixpkgs makes a file of the same settings, and leaves them where version 2 has them.
        args.config = lib.mkIf (cfg.nixSnapshotterIntegration || cfg.settings.version or 2 != 2) (lib.mkOverride 75 file);
      };

      environment.extraInit = export {
        CONTAINERD_ADDRESS = cfg.setAddress;
        CONTAINERD_NAMESPACE = lib.optionalString (cfg.setNamespace != "default") cfg.setNamespace;
        CONTAINERD_SNAPSHOTTER = cfg.setSnapshotter;
      };

      inherit (checks) assertions warnings;
    }

    (lib.mkIf cfg.gVisorIntegration {
      virtualisation.containerd = {
        path = [ pkgs.gvisor ];
        settings = settings.gVisor;
      };
    })

    (lib.mkIf cfg.k3sIntegration {
      virtualisation.containerd = {
        setNamespace = lib.mkDefault "k8s.io";
        settings = settings.k3s { cniBinDir = "${cniPluginsOfK3s}/bin"; };
      };

      services.k3s.moreFlags =
        [ "--container-runtime-endpoint=unix:///run/containerd/containerd.sock" ]
        ++ lib.optional (cfg.nixSnapshotterIntegration && daemon.settings.image_service.enable)
          "--image-service-endpoint=unix://${daemon.settings.address}";

      systemd.services.k3s = {
        wants = [ "containerd.service" ];
        after = [ "containerd.service" ];
      };

      assertions = [
        {
          assertion = config.services.k3s.enable;
          message = ''
            virtualisation.containerd.k3sIntegration is set, but services.k3s.enable is not: there is no k3s to use this
            containerd. Set services.k3s.enable = true.
          '';
        }
      ];
    })

    (lib.mkIf cfg.nixSnapshotterIntegration {
      virtualisation.containerd = {
        path = mountPrograms daemon;
        setSnapshotter = lib.mkDefault daemon.snapshotterName;
        settings = settings.nixSnapshotter {
          name = daemon.snapshotterName;
          ofCri = lib.mkDefault daemon.snapshotterName;
          inherit (daemon.settings) address root;
          platform = "linux/${pkgs.go.GOARCH}";
          idMappedMounts = isVersion2 && daemon.settings.remap_ids != false;
        };
      };

      # For `nix-snapshotter doctor`.
      environment.etc."containerd/config.toml".source = cfg.args.config;

      # containerd forgets the images of a snapshotter that does not answer when it starts.
      systemd.services.containerd = {
        wants = [ "nix-snapshotter.service" ];
        after = [ "nix-snapshotter.service" ];
      };

      services.kubernetes.kubelet.extraOpts =
        lib.mkIf (kubelet.enable && daemon.settings.image_service.enable)
          "--image-service-endpoint=unix://${daemon.settings.address}";
      systemd.services.kubelet = lib.mkIf kubelet.enable {
        wants = [ "nix-snapshotter.service" ];
        after = [ "nix-snapshotter.service" ];
      };

      assertions = [
        {
          assertion = daemon.enable;
          message = ''
            virtualisation.containerd.nixSnapshotterIntegration is set, but services.nix-snapshotter.enable is not:
            containerd would have a snapshotter that nobody runs. Set services.nix-snapshotter.enable = true.
          '';
        }
        {
          assertion = cfg.configFile == null;
          message = ''
            virtualisation.containerd.nixSnapshotterIntegration has no effect, because virtualisation.containerd.configFile
            names another file. Write its content to virtualisation.containerd.settings, or set the integration up there.
          '';
        }
      ];

      warnings = lib.optional (daemon.settings.image_service.containerd_address != cfg.setAddress) ''
        The image service of nix-snapshotter asks the containerd at ${daemon.settings.image_service.containerd_address}
        (services.nix-snapshotter.settings.image_service.containerd_address), but CONTAINERD_ADDRESS is ${cfg.setAddress}
        (virtualisation.containerd.setAddress).
      '';
    })
  ]);
}
