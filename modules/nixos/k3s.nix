# k3s as a service of the system: what is added to `services.k3s` of nixpkgs.
{ config, lib, options, pkgs, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.services.k3s;
  daemon = config.services.nix-snapshotter;
  containerd = config.virtualisation.containerd;

  k3s = import ../common/k3s.nix { inherit lib pkgs; };
  mountPrograms = import ../common/nix-snapshotter/mount-programs.nix { inherit lib pkgs; };
  export = import ../common/environment.nix { inherit lib; };

  # The snapshotter of the embedded containerd. There is none where k3s uses another containerd.
  embedded = !containerd.k3sIntegration;
  embeddedNix = embedded && cfg.snapshotter == "nix";
  name = if cfg.snapshotter == "nix" then daemon.snapshotterName else cfg.snapshotter;

  # Without merging them: a text and a list do not merge, and the error of that names no way out.
  textFlags = lib.filter (definition: builtins.isString definition.value) options.services.k3s.extraFlags.definitionsWithLocations;
in
{
  options.services.k3s =
    k3s.options { kubeConfig = "{file}`/etc/rancher/k3s/k3s.yaml`"; } // {
      moreFlags = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "--disable=traefik" ];
        description = "Further flags of k3s. `services.k3s.extraFlags` of nixpkgs, as a list, does the same.";
      };
    };

  config = lib.mkIf cfg.enable (lib.mkMerge [
    {
      services.k3s.extraFlags = lib.mkIf (cfg.moreFlags != [ ]) cfg.moreFlags;

      # What an earlier configuration has put there would outlive it.
      systemd.services.k3s.serviceConfig.ExecStartPre = [
        (k3s.configureCommand {
          inherit (cfg.package) version;
          directory = "/var/lib/rancher/k3s/agent/etc/containerd";
          settings = if !embeddedNix then null else {
            name = daemon.snapshotterName;
            inherit (daemon.settings) address root;
            idMappedMounts = daemon.settings.remap_ids != false;
          };
        })
      ];

      environment.extraInit = export (
        lib.optionalAttrs cfg.setEmbeddedContainerd
          {
            CONTAINERD_ADDRESS = "/run/k3s/containerd/containerd.sock";
            CONTAINERD_NAMESPACE = "k8s.io";
            CONTAINERD_SNAPSHOTTER = name;
          }
        // lib.optionalAttrs cfg.setKubeConfig { KUBECONFIG = "/etc/rancher/k3s/k3s.yaml"; }
      );

      assertions = [
        {
          assertion = cfg.moreFlags != [ ] -> textFlags == [ ];
          message = ''
            services.k3s.extraFlags is a text in ${lib.concatMapStringsSep ", " (definition: definition.file) textFlags}, and
            these modules add flags of their own, which merge with a list only. Write a list, one flag an entry:
            extraFlags = [ ${lib.concatMapStringsSep " " (flag: "\"${flag}\"") (lib.concatMap (definition: lib.filter (word: word != "") (lib.splitString " " definition.value)) textFlags)} ];
          '';
        }
        {
          assertion = containerd.k3sIntegration -> containerd.enable;
          message = ''
            virtualisation.containerd.k3sIntegration has k3s use a containerd that virtualisation.containerd.enable does not
            start. Set virtualisation.containerd.enable = true, or leave the integration out.
          '';
        }
        {
          assertion = containerd.k3sIntegration -> cfg.snapshotter == "overlayfs";
          message = ''
            services.k3s.snapshotter is ${cfg.snapshotter}, the snapshotter of k3s' embedded containerd, and
            virtualisation.containerd.k3sIntegration has k3s use another containerd. Choose one of the two; for the latter,
            virtualisation.containerd.nixSnapshotterIntegration = true is the way to nix-snapshotter.
          '';
        }
        {
          assertion = containerd.k3sIntegration -> !cfg.setEmbeddedContainerd;
          message = ''
            services.k3s.setEmbeddedContainerd names an embedded containerd that does not run, because
            virtualisation.containerd.k3sIntegration has k3s use another one. Leave it out.
          '';
        }
      ];
    }

    # k3s' own default may be another one in a file of configuration.
    (lib.mkIf (embedded && cfg.snapshotter != "overlayfs") {
      services.k3s.moreFlags = [ "--snapshotter=${name}" ];
    })

    (lib.mkIf embeddedNix {
      services.k3s.moreFlags = lib.optional daemon.settings.image_service.enable
        "--image-service-endpoint=unix://${daemon.settings.address}";

      services.nix-snapshotter = {
        enable = lib.mkDefault true;
        snapshotterName = lib.mkDefault "nix-snapshotter";
        settings.image_service.containerd_address = lib.mkDefault "/run/k3s/containerd/containerd.sock";
      };

      systemd.services.k3s = {
        path = mountPrograms daemon;
        wants = [ "nix-snapshotter.service" ];
        after = [ "nix-snapshotter.service" ];
      };

      assertions =
        k3s.checks
          {
            prefix = "services.k3s";
            daemon = "services.nix-snapshotter";
            inherit (cfg) package;
            instead = ''
              , or set virtualisation.containerd.k3sIntegration and virtualisation.containerd.nixSnapshotterIntegration, which
              give k3s a containerd of its own'';
            name = daemon.snapshotterName;
            # nixpkgs 24.11 has no such option.
            containerdConfigTemplate = cfg.containerdConfigTemplate or null;
          }
        ++ [
          {
            assertion = daemon.enable;
            message = ''
              services.k3s.snapshotter is nix, but services.nix-snapshotter.enable is false: nobody would serve. Leave it
              out, and it is true.
            '';
          }
          {
            assertion = !(containerd.enable && containerd.nixSnapshotterIntegration);
            message = ''
              services.k3s.snapshotter = "nix" and virtualisation.containerd.nixSnapshotterIntegration are both set: k3s'
              embedded containerd and another one would use one nix-snapshotter, and its collector would delete the
              snapshots of the other. Set virtualisation.containerd.k3sIntegration = true, so that there is one containerd,
              or choose one of the two.
            '';
          }
        ];
    })
  ]);
}
