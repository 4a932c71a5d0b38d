# The daemon's unit, for the system's manager and for a user's.
{ lib, pkgs }:
let
  mountPrograms = import ./mount-programs.nix { inherit lib pkgs; };

  common = {
    wantedBy = [ "default.target" ];
    before = [ "containerd.service" ];
    environment.NIX_REMOTE = "daemon";
    service = {
      # The socket is there, and every snapshot of the last run has been looked at, before containerd starts.
      Type = "notify";
      Restart = "always";
      RestartSec = 2;
      # Only the daemon gets SIGTERM: it ends its Nix processes itself, when their time is up.
      KillMode = "mixed";
    };
  };

  # What the daemon has to do with the machine: it reads and deletes files of any owner, and speaks with Nix and containerd
  # through sockets. It mounts nothing: that is containerd's. Each directive has been tried with the daemon.
  #
  # Not among them: RestrictSUIDSGID, whose filter forbids openat2, by which the trees of snapshots are deleted;
  # PrivateUsers, under which files of other owners cannot be deleted; ProcSubset, without which Nix warns of /proc/stat
  # in each of its messages.
  hardening = cfg:
    let
      # Only to try them when the daemon starts. What a file of one's own says is not known here.
      triesMountOptions = cfg.configFile != null || cfg.settings.mount_options != [ ];
      usesFuse = cfg.configFile != null || cfg.settings.overlay == "fuse-overlayfs";
    in
    {
      # Files of other owners, the work directories of overlays, which have mode 0, and those in sticky directories; and
      # chown, for images that are copied with other owners.
      CapabilityBoundingSet = toString ([ "CAP_CHOWN" "CAP_DAC_OVERRIDE" "CAP_FOWNER" ]
      ++ lib.optional triesMountOptions "CAP_SYS_ADMIN");
      KeyringMode = "private";
      LockPersonality = true;
      MemoryDenyWriteExecute = true;
      # Nix runs no setuid program.
      NoNewPrivileges = true;
      PrivateTmp = true;
      ProtectClock = true;
      ProtectControlGroups = true;
      ProtectHostname = true;
      ProtectKernelLogs = true;
      # Overlays need none that is not loaded at boot.
      ProtectKernelModules = true;
      ProtectKernelTunables = true;
      ProtectProc = "invisible";
      RemoveIPC = true;
      # AF_INET for metrics on a loopback address, and for what a builder fetches.
      RestrictAddressFamilies = "AF_UNIX AF_INET AF_INET6";
      RestrictNamespaces = true;
      RestrictRealtime = true;
      SystemCallArchitectures = "native";
      SystemCallErrorNumber = "EPERM";
      SystemCallFilter = toString ([ "@system-service" ] ++ lib.optional triesMountOptions "@mount");
    }
    // (if usesFuse
    then { DevicePolicy = "closed"; DeviceAllow = "/dev/fuse rw"; }
    else { PrivateDevices = true; })
    # What a file of one's own has is not known here.
    // (if cfg.configFile == null
    then {
      # root's ~/.config/nix and ~/.netrc are read.
      ProtectHome = "read-only";
      ProtectSystem = "strict";
    } // writable cfg
    else { RuntimeDirectory = "nix-snapshotter"; });

  # Directories that the daemon writes to. systemd makes those below /var/lib and /run, the others have to be there.
  writable = cfg:
    let
      inherit (cfg.settings) root;
      metrics = toString cfg.settings.metrics.address;
      sockets = map builtins.dirOf
        ([ cfg.settings.address ] ++ lib.optional (lib.hasPrefix "unix://" metrics) (lib.removePrefix "unix://" metrics));
      isRuntime = lib.hasPrefix "/run/";
      isState = lib.hasPrefix "/var/lib/" root;
      others = lib.filter (directory: !isRuntime directory) sockets ++ lib.optional (!isState) root;
    in
    {
      RuntimeDirectory = lib.unique (map (lib.removePrefix "/run/") (lib.filter isRuntime sockets));
    }
    // lib.optionalAttrs isState {
      StateDirectory = lib.removePrefix "/var/lib/" root;
      StateDirectoryMode = "0700";
    }
    // lib.optionalAttrs (others != [ ]) { ReadWritePaths = lib.unique others; };
in
{
  system = { cfg, configFile }:
    common // {
      description = "nix-snapshotter, a containerd snapshotter for Nix store paths";
      wantedBy = [ "multi-user.target" ];
      wants = [ "nix-daemon.socket" ];
      after = [ "network.target" "nix-daemon.socket" ];
      path = cfg.path ++ mountPrograms cfg;
      unit = lib.optionalAttrs (cfg.configFile == null) { RequiresMountsFor = cfg.settings.root; };
      environment = common.environment // { XDG_CACHE_HOME = "/var/cache/nix-snapshotter"; };
      service = common.service // {
        ExecStart = "${cfg.package}/bin/nix-snapshotter --config ${configFile}";
        # For a builder that evaluates.
        CacheDirectory = "nix-snapshotter";
      } // hardening cfg;
    };

  # Not hardened: most directives need a mount namespace of their own, and the program enters another one. The user
  # namespace is the limit here. `namespaces` is the unit that holds the namespaces of containerd, `enter` the program
  # that enters them.
  user = { cfg, configFile, namespaces, enter }:
    let
      root = if cfg.settings.root != null then cfg.settings.root else "%h/.local/share/nix-snapshotter";
    in
    common // {
      description = "nix-snapshotter, a containerd snapshotter for Nix store paths (rootless)";
      after = [ namespaces ];
      bindsTo = [ namespaces ];
      path = cfg.path ++ mountPrograms cfg;
      unit.ConditionUser = "!root";
      service = common.service // {
        # The one who is notified is outside, and nsenter turns into the daemon inside.
        NotifyAccess = "all";
        # Otherwise the journal calls it after the program that enters.
        SyslogIdentifier = "nix-snapshotter";
        ExecStart = "${enter} ${cfg.package}/bin/nix-snapshotter --config ${configFile} --root ${root}";
      };
    };
}
