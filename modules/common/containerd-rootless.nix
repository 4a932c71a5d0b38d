# containerd as a service of a user: options and units, for NixOS and Home Manager alike.
#
#   containerd-namespaces.service   rootlesskit, which makes the user, mount and network namespaces and holds them. They
#                                   end with everything in them
#   nix-snapshotter.service         enters them, and serves
#   containerd.service              enters them. Its containers go on when it is restarted.
{ config, lib, pkgs, ... }:
let
  inherit (lib) literalExpression mkOption types;
  cfg = config.virtualisation.containerd.rootless;
  daemon = config.services.nix-snapshotter.rootless;

  settings = import ./containerd/settings.nix { inherit lib; };
  configFile = import ./containerd/config-file.nix { inherit lib pkgs; };
  mountPrograms = import ./nix-snapshotter/mount-programs.nix { inherit lib pkgs; };
  programs = import ./containerd/namespaces.nix { inherit lib pkgs; } { inherit (cfg) bindMounts; };
  toml = pkgs.formats.toml { };

  # gVisor cannot make control groups there.
  runsc = lib.hiPrio (pkgs.writeShellApplication {
    name = "runsc";
    runtimeInputs = [ pkgs.gvisor ];
    text = ''
      exec runsc --ignore-cgroups "$@"
    '';
  });
  gVisor = pkgs.buildEnv {
    name = "gvisor-rootless";
    paths = [ runsc pkgs.gvisor ];
  };

  arguments = lib.mapAttrsToList (name: value: "--${name}=${value}") cfg.args;
in
{
  options.virtualisation.containerd.rootless =
    import ./containerd/options.nix
      {
        inherit lib;
        address = "$XDG_RUNTIME_DIR/containerd/containerd.sock";
      }
    // {
      enable = lib.mkEnableOption "containerd as a service of each user, in user namespaces";

      package = lib.mkPackageOption pkgs "containerd" { };

      settings = mkOption {
        type = toml.type;
        default = { };
        description = ''
          containerd's configuration, in version 2 of its file. For containerd 2.x what belongs to the CRI is moved to where
          version 3 has it.
        '';
      };

      args = mkOption {
        type = types.attrsOf types.str;
        default = { };
        example = { log-level = "debug"; };
        description = "Further flags of containerd.";
      };

      bindMounts = mkOption {
        type = types.attrsOf (types.submodule {
          options.mountPoint = mkOption {
            type = types.strMatching "/.*";
            example = "/run/containerd";
            description = "Where it is within the namespaces.";
          };
        });
        default = { };
        example = literalExpression ''
          {
            "$XDG_RUNTIME_DIR/containerd".mountPoint = "/run/containerd";
          }
        '';
        description = ''
          Directories of the user that take the place of the system's within the namespaces of containerd. A shell expands
          `$NAME` in their names.
        '';
      };

      nsenter = mkOption {
        type = types.package;
        readOnly = true;
        default = programs.nsenter;
        defaultText = literalExpression "a program";
        description = ''
          A package with the program {command}`containerd-nsenter`, which runs a command in the namespaces of containerd.
        '';
      };
    };

  config = lib.mkIf cfg.enable (lib.mkMerge [
    {
      virtualisation.containerd.rootless = {
        settings = lib.mkMerge [
          { version = lib.mkDefault 2; }
          (settings.runtimes {
            inherit (cfg) defaultRuntime;
            cniBinDir = "${pkgs.cni-plugins}/bin";
          })
          settings.rootless
        ];

        args.config = lib.mkDefault (toString (configFile { inherit (cfg) package settings; }).file);

        bindMounts = {
          "$XDG_RUNTIME_DIR/containerd".mountPoint = "/run/containerd";
          "$XDG_DATA_HOME/containerd".mountPoint = "/var/lib/containerd";
          "$XDG_DATA_HOME/cni".mountPoint = "/var/lib/cni";
          "$XDG_CONFIG_HOME/cni".mountPoint = "/etc/cni";
        };
      };

      services.nix-snapshotter.userServices = {
        units.containerd-namespaces = {
          description = "Namespaces of containerd (rootless)";
          wantedBy = [ "default.target" ];
          # When they come back after a failure, so do those who were in them.
          wants = [ "containerd.service" ] ++ lib.optional cfg.nixSnapshotterIntegration "nix-snapshotter.service";
          unit = {
            ConditionUser = "!root";
            # At some time it is no use any more: whoever has asked for the start waits until then.
            StartLimitIntervalSec = 60;
            StartLimitBurst = 5;
            # A rebuild of the system does not end containers.
            X-RestartIfChanged = false;
            X-SwitchMethod = "keep-old";
          };
          service = {
            Type = "notify";
            # The one who is ready is in a namespace.
            NotifyAccess = "all";
            ExecStart = "${programs.hold}/bin/containerd-namespaces";
            ExecStopPost = "${programs.end}/bin/containerd-namespaces-end";
            Restart = "on-failure";
            RestartSec = 2;
            # The others wait until a start has succeeded. Otherwise they fail with the first, and ask for the next at
            # once (systemd 254).
            RestartMode = "direct";
            KillMode = "mixed";
          };
        };

        units.containerd = {
          description = "containerd, a container runtime (rootless)";
          wantedBy = [ "default.target" ];
          bindsTo = [ "containerd-namespaces.service" ];
          wants = lib.optional cfg.nixSnapshotterIntegration "nix-snapshotter.service";
          after =
            [ "containerd-namespaces.service" ]
            ++ lib.optional cfg.nixSnapshotterIntegration "nix-snapshotter.service";
          # What the container runtime calls; the rest is for health checks and the like within containers' networks.
          path = [ cfg.package pkgs.runc pkgs.iptables pkgs.iproute2 pkgs.kmod pkgs.coreutils pkgs.util-linux ] ++ cfg.path;
          unit.ConditionUser = "!root";
          service = {
            Type = "notify";
            NotifyAccess = "all";
            # Otherwise the journal calls it containerd-nsenter.
            SyslogIdentifier = "containerd";
            ExecStart = lib.concatStringsSep " "
              ([ "${programs.nsenter}/bin/containerd-nsenter" "${cfg.package}/bin/containerd" ] ++ arguments);
            Restart = "always";
            RestartSec = 2;
            Delegate = true;
            # Shims, and with them containers, outlive containerd.
            KillMode = "process";
            OOMPolicy = "continue";
            TasksMax = "infinity";
          };
        };

        variables = {
          CONTAINERD_ADDRESS = cfg.setAddress;
          CONTAINERD_NAMESPACE = lib.optionalString (cfg.setNamespace != "default") cfg.setNamespace;
          CONTAINERD_SNAPSHOTTER = cfg.setSnapshotter;
        };
      };
    }

    (lib.mkIf cfg.gVisorIntegration {
      virtualisation.containerd.rootless = {
        path = [ gVisor ];
        settings = settings.gVisor;
      };
    })

    (lib.mkIf cfg.nixSnapshotterIntegration {
      virtualisation.containerd.rootless = {
        path = mountPrograms daemon;
        setSnapshotter = lib.mkDefault daemon.snapshotterName;

        settings = settings.nixSnapshotter {
          name = daemon.snapshotterName;
          inherit (daemon.settings) address;
          # kubelet has no use for it here, and the path is the user's.
          root = "/var/lib/containerd";
          platform = "linux/${pkgs.go.GOARCH}";
          # A user namespace maps no mounts of file systems that are not its own.
          idMappedMounts = false;
        };

        bindMounts."$XDG_RUNTIME_DIR/nix-snapshotter".mountPoint = builtins.dirOf daemon.settings.address;
      };

      assertions = [
        {
          assertion = daemon.enable;
          message = ''
            virtualisation.containerd.rootless.nixSnapshotterIntegration is set, but services.nix-snapshotter.rootless.enable
            is not: containerd would have a snapshotter that nobody runs. Set services.nix-snapshotter.rootless.enable = true.
          '';
        }
      ];
    })
  ]);
}
