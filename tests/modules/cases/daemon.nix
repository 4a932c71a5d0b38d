# services.nix-snapshotter
{ lib, pkgs, evaluate, checks }:
let
  daemon = settings: evaluate.nixos {
    services.nix-snapshotter = { enable = true; } // settings;
  };
  unit = result: result.units."nix-snapshotter.service";
  service = result: result.config.systemd.services.nix-snapshotter.serviceConfig;
in
{
  "nothing is there unless it is enabled" =
    let result = evaluate.nixos { }; in
    checks.accepted result // {
      "no unit" = !(result.units ? "nix-snapshotter.service");
      "no user unit" = !(result.userUnits ? "nix-snapshotter.service");
      "containerd is as nixpkgs has it" = !(result.units ? "containerd.service");
    };

  "by itself" =
    let result = daemon { }; in
    checks.accepted result
    // checks.lines [
      "Before=containerd.service"
      "Type=notify"
      "ProtectSystem=strict"
      "NoNewPrivileges=true"
      "StateDirectory=containerd/io.containerd.snapshotter.v1.nix"
      "RuntimeDirectory=nix-snapshotter"
      "Environment=\"NIX_REMOTE=daemon\""
    ]
      (unit result)
    // {
      "the daemon of Nix is there before" = lib.hasInfix "nix-daemon.socket" (unit result);
      "its Nix is the machine's" = lib.elem result.config.nix.package result.config.systemd.services.nix-snapshotter.path;
      "the configuration is checked" = lib.hasInfix "nix-snapshotter.toml" (service result).ExecStart;
    };

  "keys of the configuration, known and unknown ones" =
    let
      result = daemon {
        settings = {
          socket_group = "users";
          metrics.address = "127.0.0.1:9600";
          mount_options = [ "volatile" ];
          # Left to the check at build time.
          of_a_later_version = 1;
        };
      };
      inherit (result.config.services.nix-snapshotter) settings;
    in
    checks.accepted result // {
      "the group" = settings.socket_group == "users";
      "the address" = settings.metrics.address == "127.0.0.1:9600";
      "defaults beside" = settings.image_service.enable && settings.max_realisations == 8;
      "what is not known is kept" = settings.of_a_later_version == 1;
    };

  "a value that cannot be" = {
    "it is refused" = !(builtins.tryEval (daemon { settings.max_realisations = 0; }).config.services.nix-snapshotter.settings.max_realisations).success;
  };

  "a root elsewhere" =
    let result = daemon { settings.root = "/data/nix-snapshotter"; }; in
    checks.accepted result
    // checks.lines [ "ReadWritePaths=/data/nix-snapshotter" ] (unit result)
    // {
      "no directory of the state" = !(service result ? StateDirectory);
      "it is made" = result.config.systemd.tmpfiles.settings."10-nix-snapshotter" ? "/data/nix-snapshotter";
    };

  "sockets elsewhere" =
    let
      result = daemon {
        settings = {
          address = "/run/containerd/nix.sock";
          metrics.address = "unix:///srv/metrics/nix.sock";
        };
      };
    in
    checks.accepted result // {
      "systemd deletes no directory of others with the daemon" = !(service result ? RuntimeDirectory);
      "the daemon may write there" = (service result).ReadWritePaths == [ "/run/containerd" "/srv/metrics" ];
      "which somebody makes" = lib.all
        (directory: result.config.systemd.tmpfiles.settings."10-nix-snapshotter".${directory} ? d)
        [ "/run/containerd" "/srv/metrics" ];
    };

  "sockets in a directory of the daemon's own" =
    let
      result = daemon {
        settings = {
          address = "/run/nix-snapshotter-2/nix.sock";
          metrics.address = "unix:///run/nix-snapshotter-2/metrics/nix.sock";
        };
      };
    in
    checks.accepted result // {
      "systemd makes it" = (service result).RuntimeDirectory == [ "nix-snapshotter-2" "nix-snapshotter-2/metrics" ];
      "and nobody else" = result.config.systemd.tmpfiles.settings."10-nix-snapshotter" or { } == { };
    };

  "what /tmp would hide" =
    checks.refused [ "settings.address is /tmp/nix.sock" "root is /var/tmp/nix" "below /run" "below /var/lib" ]
      (daemon { settings = { address = "/tmp/nix.sock"; root = "/var/tmp/nix"; }; });

  "a group that is not there" =
    checks.refused [ "services.nix-snapshotter.settings.socket_group is containerd" "users.groups.containerd = { }" ]
      (daemon { settings.socket_group = "containerd"; });

  "a group by its number" = checks.accepted (daemon { settings.socket_group = "1234"; });

  "the root of another snapshotter" =
    checks.refused [ "services.nix-snapshotter.settings.root" "io.containerd.snapshotter.v1.overlayfs" "directory of its own" ]
      (daemon { settings.root = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs"; });

  "a directory below it" =
    checks.refused [ "services.nix-snapshotter.settings.root" "io.containerd.snapshotter.v1.stargz" "directory of its own" ]
      (daemon { settings.root = "/var/lib/rancher/k3s/agent/containerd/io.containerd.snapshotter.v1.stargz/nix"; });

  "the root of k3s' own nix-snapshotter" =
    checks.refused [ "services.nix-snapshotter.settings.root" "k3s/agent/containerd/io.containerd.snapshotter.v1.nix" ]
      (daemon { settings.root = "/var/lib/rancher/k3s/agent/containerd/io.containerd.snapshotter.v1.nix/"; });

  "a directory with all of containerd in it" =
    checks.refused [ "services.nix-snapshotter.settings.root is /data" "but /data/containerd is" ]
      (evaluate.nixos {
        services.nix-snapshotter = {
          enable = true;
          settings.root = "/data";
        };
        virtualisation.containerd.settings.root = "/data/containerd";
      });

  "a directory beside others of containerd" =
    checks.accepted (daemon {
      snapshotterName = "store";
      settings.root = "/var/lib/containerd/io.containerd.snapshotter.v1.store";
    });

  "an address with a scheme" =
    checks.refused [ "services.nix-snapshotter.settings.address" "without `unix://`" ]
      (daemon { settings.address = "unix:///run/nix-snapshotter/nix-snapshotter.sock"; });

  "options of overlays, and fuse-overlayfs" =
    let
      options = daemon { settings.mount_options = [ "volatile" ]; };
      fuse = daemon { settings.overlay = "fuse-overlayfs"; };
    in
    checks.accepted options // checks.accepted fuse // {
      "options are tried" = lib.hasInfix "CAP_SYS_ADMIN" (service options).CapabilityBoundingSet
      && lib.hasInfix "@mount" (service options).SystemCallFilter;
      "without them nothing is" = !(lib.hasInfix "CAP_SYS_ADMIN" (service fuse).CapabilityBoundingSet);
      "fuse has its programs" = lib.elem pkgs.fuse-overlayfs fuse.config.systemd.services.nix-snapshotter.path
      && !(lib.elem pkgs.fuse-overlayfs options.config.systemd.services.nix-snapshotter.path);
      "fuse has its device" = (service fuse).DeviceAllow == "/dev/fuse rw";
      "which nobody else has" = (service options).PrivateDevices;
    };

  "an external builder" =
    let
      builder = pkgs.writeShellScript "builder" ''exec nix-store --realise "$2" --add-root "$1"'';
      result = daemon { settings.external_builder = builder; };
    in
    checks.accepted result // {
      "it is in the configuration" = toString result.config.services.nix-snapshotter.settings.external_builder == toString builder;
    };

  "an external builder beside a file" =
    checks.refused [ "external_builder has no effect" "configFile" ]
      (daemon {
        configFile = "/etc/nix-snapshotter/config.toml";
        settings.external_builder = "/bin/builder";
      });

  "a file of one's own" =
    let result = daemon { configFile = "/etc/nix-snapshotter/config.toml"; }; in
    checks.accepted result // {
      "its root is not known" = !(service result ? ProtectSystem) && !(service result ? StateDirectory);
      "it is used as it is" = lib.hasSuffix "--config /etc/nix-snapshotter/config.toml" (service result).ExecStart;
    };

  "keys beside it" =
    let
      result = daemon {
        configFile = "/etc/nix-snapshotter/config.toml";
        settings = {
          address = "/run/nix-snapshotter/other.sock";
          sync_remove = true;
          metrics.address = "127.0.0.1:9600";
        };
      };
    in
    checks.warned [ "settings.{metrics,sync_remove} have no effect" "services.nix-snapshotter.configFile" ] result;

  "time to stop" = checks.lines [ "TimeoutStopSec=150" ] (unit (daemon { settings.shutdown_timeout = 120; }));

  "the package of the Go project" =
    checks.refused [ "services.nix-snapshotter.package" "Go project" "overlays.default" ]
      (daemon {
        package = pkgs.hello;
        configFile = "/etc/nix-snapshotter/config.toml";
      });

  "without Nix" =
    checks.refused [ "nix.enable is false" "Set it to true" ]
      (evaluate.nixos {
        services.nix-snapshotter.enable = true;
        nix.enable = false;
      });

  "another name" =
    let result = daemon { snapshotterName = "store"; }; in
    checks.accepted result // {
      "the image service knows it" = result.config.services.nix-snapshotter.settings.image_service.snapshotter == "store";
    };

  "two names" =
    checks.warned [ "image_service.snapshotter is other" "nix-snapshotter.snapshotterName" ]
      (daemon { settings.image_service.snapshotter = "other"; });
}
