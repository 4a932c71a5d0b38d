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
  commandLine = import ./command-line.nix { inherit lib; };
  mountPrograms = import ./nix-snapshotter/mount-programs.nix { inherit lib pkgs; };
  programs = import ./containerd/namespaces.nix { inherit lib pkgs; } { inherit (cfg) bindMounts; };
  checkIds = import ./containerd/subordinate-ids.nix { inherit pkgs; };
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

  file = toString (configFile { inherit (cfg) package settings; }).file;
  checks = import ./containerd/checks.nix { inherit lib; } {
    inherit cfg file;
    inherit (cfg) package;
    prefix = "virtualisation.containerd.rootless";
    daemon = "services.nix-snapshotter.rootless";
    disableCgroup = true;
  };
  arguments = lib.mapAttrsToList (name: value: commandLine.expand "--${name}=${value}") cfg.args;

  # The last of several mounts at one place hides the others.
  hidden = lib.filterAttrs (_: sources: lib.length sources > 1)
    (lib.groupBy (source: cfg.bindMounts.${source}.mountPoint) (lib.attrNames cfg.bindMounts));

  # Within the namespaces, the user's directory takes the place of that of the daemon's socket.
  socketSource = "$XDG_RUNTIME_DIR/nix-snapshotter";
  socketDirectory = builtins.dirOf daemon.settings.address;
  # Others in the namespaces need what is there.
  systemDirectories = [ "booted-system" "current-system" "dbus" "lock" "systemd" "udev" "user" "wrappers" ];
  isOwn =
    let names = lib.splitString "/" (lib.removePrefix "/run/" socketDirectory); in
    lib.hasPrefix "/run/" socketDirectory
    && !(lib.elem (lib.head names) systemDirectories)
    && !(lib.any (mount: mount.mountPoint == socketDirectory)
      (lib.attrValues (builtins.removeAttrs cfg.bindMounts [ socketSource ])));
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

      package = lib.mkPackageOption pkgs "containerd" { example = "pkgs.containerd.overrideAttrs { doCheck = false; }"; };

      settings = mkOption {
        type = toml.type;
        default = { };
        example = literalExpression ''
          {
            debug.level = "debug";
            plugins."io.containerd.grpc.v1.cri".sandbox_image = "registry.k8s.io/pause:3.10";
          }
        '';
        description = ''
          containerd's configuration, in version 2 of its file or a later one. For containerd 2.x what version 2 has of the
          CRI is moved to where version 3 has it.
        '';
      };

      args = mkOption {
        type = types.attrsOf types.str;
        default = { };
        example = { log-level = "debug"; };
        description = ''
          Further flags of containerd. `$XDG_RUNTIME_DIR`, `$HOME`, `$USER` and `$UID` in them are those of the user.
        '';
      };

      bindMounts = mkOption {
        type = types.attrsOf (types.submodule {
          options.mountPoint = mkOption {
            type = types.strMatching "[/$].*";
            example = "/run/containerd";
            description = "Where it is within the namespaces. A shell expands `$NAME` in it.";
          };
        });
        default = { };
        example = literalExpression ''
          {
            "$HOME/certs".mountPoint = "/etc/containerd/certs.d";
          }
        '';
        description = ''
          Directories of the user, and where they are within the namespaces of containerd. What is there otherwise is not
          seen then, and stays as it is. A shell expands `$NAME` in their names.
        '';
      };

      nsenter = mkOption {
        type = types.package;
        default = programs.nsenter;
        defaultText = literalExpression "a program";
        example = literalExpression ''pkgs.writeShellScriptBin "containerd-nsenter" "exec …"'';
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

        args.config = lib.mkDefault file;

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
          # A rebuild of the system does not end containers.
          restartIfChanged = false;
          unit = {
            ConditionUser = "!@system";
            # At some time it is no use any more: whoever has asked for the start waits until then.
            StartLimitIntervalSec = 60;
            StartLimitBurst = 5;
          };
          service = {
            Type = "notify";
            # The one who is ready is in a namespace.
            NotifyAccess = "all";
            ExecStartPre = "${checkIds}/bin/check-subordinate-ids";
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
          unit.ConditionUser = "!@system";
          service = {
            Type = "notify";
            NotifyAccess = "all";
            # Otherwise the journal calls it containerd-nsenter.
            SyslogIdentifier = "containerd";
            ExecStart = toString
              ([ "${cfg.nsenter}/bin/containerd-nsenter" "${cfg.package}/bin/containerd" ] ++ arguments);
            Restart = "always";
            RestartSec = 2;
            Delegate = true;
            # Shims, and with them containers, outlive containerd.
            KillMode = "process";
            OOMPolicy = "continue";
            TasksMax = "infinity";
          };
        };

        # For ctr and containerd-nsenter.
        packages = [ cfg.package cfg.nsenter ];
        # For `nix-snapshotter doctor --containerd-config`.
        files = lib.optionalAttrs cfg.nixSnapshotterIntegration { "rootless-containerd.toml" = cfg.args.config; };

        variables = {
          CONTAINERD_ADDRESS = cfg.setAddress;
          CONTAINERD_NAMESPACE = lib.optionalString (cfg.setNamespace != "default") cfg.setNamespace;
          CONTAINERD_SNAPSHOTTER = cfg.setSnapshotter;
        };
      };

      assertions =
        lib.mapAttrsToList (name: commandLine.expands "virtualisation.containerd.rootless.args.${name}") cfg.args
        ++ lib.mapAttrsToList
          (point: sources: {
            assertion = false;
            message = ''
              virtualisation.containerd.rootless.bindMounts has ${lib.concatStringsSep " and " sources} at ${point}, where the
              one would hide the other. Choose a mount point for each.
            '';
          })
          (builtins.removeAttrs hidden (lib.optional (!isOwn) socketDirectory))
        ++ checks.assertions;
      inherit (checks) warnings;
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
          ofCri = lib.mkDefault daemon.snapshotterName;
          inherit (daemon.settings) address;
          # kubelet has no use for it here, and the path is the user's.
          root = "/var/lib/containerd";
          platform = "linux/${pkgs.go.GOARCH}";
          # A user namespace maps no mounts of file systems that are not its own.
          idMappedMounts = false;
          hasOverlayfs = daemon.settings.overlay == "kernel";
        };

        bindMounts.${socketSource}.mountPoint = socketDirectory;
      };

      assertions = [
        {
          assertion = daemon.enable;
          message = ''
            virtualisation.containerd.rootless.nixSnapshotterIntegration is set, but services.nix-snapshotter.rootless.enable
            is not: containerd would have a snapshotter that nobody runs. Set services.nix-snapshotter.rootless.enable = true.
          '';
        }
        {
          assertion = isOwn;
          message = ''
            services.nix-snapshotter.rootless.settings.address is ${daemon.settings.address}. Within the namespaces of
            containerd a directory of the user takes the place of ${socketDirectory}, and nothing else there is seen any
            more: choose a directory of its own below /run, such as /run/nix-snapshotter.
          '';
        }
      ];
    })
  ]);
}
