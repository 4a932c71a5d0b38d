# k3s as a service of a user: options and unit, for NixOS and Home Manager alike. It makes its namespaces itself, and its
# embedded containerd is the only one it can have there.
{ config, lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.services.k3s.rootless;
  daemon = config.services.nix-snapshotter.rootless;

  k3s = import ./k3s.nix { inherit lib pkgs; };
  mountPrograms = import ./nix-snapshotter/mount-programs.nix { inherit lib pkgs; };
  namespaces = import ./k3s-namespaces.nix { inherit pkgs; };
  checkIds = import ./containerd/subordinate-ids.nix { inherit pkgs; };
  embeddedNix = cfg.snapshotter == "nix";
  name = if embeddedNix then daemon.snapshotterName else cfg.snapshotter;

  # Seen from within the namespaces as /run/k3s/containerd, and the one directory there that the user sees too.
  socket = "/run/k3s/containerd/nix-snapshotter/nix-snapshotter.sock";
in
{
  options.services.k3s.rootless =
    k3s.options { kubeConfig = "{file}`~/.kube/k3s.yaml`"; } // {
      enable = lib.mkEnableOption "k3s as a service of each user";

      package = lib.mkPackageOption pkgs "k3s" { example = "pkgs.k3s_1_34"; };

      extraFlags = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "--disable=traefik" ];
        description = "Further flags of k3s.";
      };

      path = mkOption {
        type = types.listOf (types.either types.package types.path);
        default = [ ];
        example = lib.literalExpression "[ pkgs.nerdctl ]";
        description = "What k3s finds on its PATH, besides what it needs itself.";
      };

      environmentFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = "/etc/k3s/environment";
        description = "A file of variables for k3s, as {manpage}`systemd.exec(5)` describes for `EnvironmentFile`.";
      };

      configPath = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = "/etc/k3s/config.yaml";
        description = "A YAML file with the configuration of k3s.";
      };

      nsenter = mkOption {
        type = types.package;
        default = namespaces.nsenter;
        defaultText = lib.literalExpression "a program";
        example = lib.literalExpression ''pkgs.writeShellScriptBin "k3s-nsenter" "exec …"'';
        description = "A package with the program {command}`k3s-nsenter`, which runs a command in the namespaces of k3s.";
      };
    };

  config = lib.mkIf cfg.enable (lib.mkMerge [
    {
      services.k3s.rootless = {
        # k3s' own default may be another one in a file of configuration.
        extraFlags = lib.optional (cfg.snapshotter != "overlayfs") "--snapshotter=${name}";
        path = [ pkgs.slirp4netns ] ++ lib.optional (cfg.snapshotter == "fuse-overlayfs") pkgs.fuse-overlayfs;
      };

      services.nix-snapshotter.userServices = {
        units.k3s = {
          description = "k3s, a Kubernetes (rootless)";
          wantedBy = [ "default.target" ];
          # When it comes back after a failure, so does the daemon, which has ended with it.
          wants = lib.optional embeddedNix "nix-snapshotter.service";
          # newuidmap and newgidmap are setuid: of NixOS, or of another distribution.
          path = cfg.path ++ [ "/run/wrappers" "/usr" ];
          unit.ConditionUser = "!@system";
          service = {
            Type = "simple";
            ExecStartPre = [
              "${checkIds}/bin/check-subordinate-ids"
              # What an earlier configuration has put there would outlive it.
              (k3s.configureCommand {
                inherit (cfg.package) version;
                directory = "%h/.rancher/k3s/agent/etc/containerd";
                settings = if !embeddedNix then null else {
                  inherit name;
                  inherit (daemon.settings) address;
                  # kubelet looks at the file system of k3s' own directory, which is that of the snapshots too.
                  root = "/var/lib/kubelet";
                  # A user namespace maps no mounts of file systems that are not its own.
                  idMappedMounts = false;
                  hasOverlayfs = daemon.settings.overlay == "kernel";
                };
              })
            ];
            ExecStart = lib.concatStringsSep " " (
              [ "${cfg.package}/bin/k3s" "server" "--rootless" ]
                ++ lib.optional (cfg.configPath != null) "--config=${cfg.configPath}"
                ++ cfg.extraFlags
            );
            Restart = "always";
            RestartSec = 5;
            Delegate = true;
            # Containers are in its namespaces, and go with them.
            KillMode = "mixed";
            LimitNOFILE = "infinity";
            TasksMax = "infinity";
          } // lib.optionalAttrs (cfg.environmentFile != null) { EnvironmentFile = cfg.environmentFile; };
        };

        # For kubectl, crictl, ctr and k3s-nsenter.
        packages = [ cfg.package cfg.nsenter ];

        variables =
          lib.optionalAttrs cfg.setEmbeddedContainerd
            {
              CONTAINERD_ADDRESS = "$XDG_RUNTIME_DIR/k3s/containerd/containerd.sock";
              CONTAINERD_NAMESPACE = "k8s.io";
              CONTAINERD_SNAPSHOTTER = name;
              # Where nerdctl looks for the namespaces.
              ROOTLESSKIT_STATE_DIR = "$HOME/.rancher/k3s/rootless";
            }
          // lib.optionalAttrs cfg.setKubeConfig { KUBECONFIG = "$HOME/.kube/k3s.yaml"; };
      };
    }

    (lib.mkIf embeddedNix {
      services.k3s.rootless = {
        path = mountPrograms daemon;
        extraFlags = lib.optional daemon.settings.image_service.enable
          "--image-service-endpoint=unix://${daemon.settings.address}";
      };

      services.nix-snapshotter.rootless = {
        enable = lib.mkDefault true;
        snapshotterName = lib.mkDefault "nix-snapshotter";
        settings = {
          address = lib.mkDefault socket;
          image_service.containerd_address = lib.mkDefault "/run/k3s/containerd/containerd.sock";
        };
      };

      assertions =
        k3s.checks
          {
            prefix = "services.k3s.rootless";
            daemon = "services.nix-snapshotter.rootless";
            inherit (cfg) package;
            inherit name;
            instead = "";
          }
        ++ [
          {
            assertion = daemon.enable;
            message = ''
              services.k3s.rootless.snapshotter is nix, but services.nix-snapshotter.rootless.enable is false: nobody would
              serve. Leave it out, and it is true.
            '';
          }
        ];
    })
  ]);
}
