# The daemon's unit, for the system's manager and for a user's.
{ lib, pkgs }:
let
  mountPrograms = import ./mount-programs.nix { inherit lib pkgs; };
  inherit (import ../command-line.nix { inherit lib; }) word;

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

  # After its own time for what is in flight, and a moment for the rest. What a file of one's own says is not known here.
  patience = cfg: lib.optionalAttrs (cfg.configFile == null) { TimeoutStopSec = cfg.settings.shutdown_timeout + 30; };

  # What the daemon has to do with the machine: it reads and deletes files of any owner, and speaks with Nix and containerd
  # through sockets. It mounts nothing: that is containerd's. Each directive has been tried with the daemon.
  #
  # Not among them: RestrictSUIDSGID, whose filter forbids openat2, by which the trees of snapshots are deleted;
  # PrivateUsers, under which files of other owners cannot be deleted; ProcSubset, without which Nix warns of /proc/stat
  # in each of its messages; KeyringMode and RemoveIPC, which say what holds for a service of root without them.
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
      # Nix runs no setuid program.
      NoNewPrivileges = true;

      # The memory and the time of the machine: no code is made at run time, and nothing has to be done within a deadline.
      MemoryDenyWriteExecute = true;
      RestrictRealtime = true;

      # Programs of other architectures are built, and run, by nix-daemon.
      LockPersonality = true;
      SystemCallArchitectures = "native";
      # systemd's own list for services. What else is tried fails, and ends nobody.
      SystemCallErrorNumber = "EPERM";
      SystemCallFilter = toString ([ "@system-service" ] ++ lib.optional triesMountOptions "@mount");
      # containerd makes the namespaces.
      RestrictNamespaces = true;
      # AF_INET for metrics on a loopback address, and for what a builder fetches.
      RestrictAddressFamilies = "AF_UNIX AF_INET AF_INET6";

      # What it could do as root to the kernel and the machine, and has no reason to.
      ProtectClock = true;
      ProtectControlGroups = true;
      ProtectHostname = true;
      ProtectKernelLogs = true;
      # Overlays need none that is not loaded at boot.
      ProtectKernelModules = true;
      ProtectKernelTunables = true;
      # Processes of other users, and what they leave in /tmp for root to trip over.
      PrivateTmp = true;
      ProtectProc = "invisible";
    }
    # Of devices it needs no more than this one.
    // (if usesFuse
    then { DevicePolicy = "closed"; DeviceAllow = "/dev/fuse rw"; }
    else { PrivateDevices = true; })
    # What a file of one's own has is not known here.
    // (if cfg.configFile == null
    then {
      # root's ~/.config/nix and ~/.netrc are read.
      ProtectHome = "read-only";
      # The store is nix-daemon's to write to.
      ProtectSystem = "strict";
    } // writable cfg
    else { RuntimeDirectory = "nix-snapshotter"; });

  # Directories that the daemon writes to. systemd makes those that are its own; the others have to be there.
  writable = cfg:
    let
      inherit (cfg.settings) root;
      own = lib.filter isOwn (socketDirectories cfg);
      others = foreignDirectories cfg ++ lib.optional (!isState root) root;
    in
    lib.optionalAttrs (own != [ ]) { RuntimeDirectory = map (lib.removePrefix "/run/") own; }
    // lib.optionalAttrs (isState root) {
      StateDirectory = lib.removePrefix "/var/lib/" root;
      StateDirectoryMode = "0700";
    }
    // lib.optionalAttrs (others != [ ]) { ReadWritePaths = others; };

  isState = lib.hasPrefix "/var/lib/";

  # systemd deletes a RuntimeDirectory with all that is in it when the daemon stops. Others may have sockets there too,
  # unless it bears the daemon's name.
  isOwn = directory: builtins.match "/run/[^/]*nix-snapshotter[^/]*(/.*)?" directory != null;

  socketDirectories = cfg:
    let metrics = toString cfg.settings.metrics.address; in
    lib.unique (map builtins.dirOf
      ([ cfg.settings.address ] ++ lib.optional (lib.hasPrefix "unix://" metrics) (lib.removePrefix "unix://" metrics)));

  foreignDirectories = cfg: lib.filter (directory: !isOwn directory) (socketDirectories cfg);
in
{
  # Directories of its sockets that are not the daemon's alone, and that somebody has to make.
  inherit foreignDirectories;

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
        ExecStart = "${cfg.package}/bin/nix-snapshotter" + lib.optionalString (configFile != null) " --config ${configFile}";
        # For a builder that evaluates.
        CacheDirectory = "nix-snapshotter";
      } // patience cfg // hardening cfg;
    };

  # Not hardened: most directives need a mount namespace of their own, and the program enters another one. The user
  # namespace is the limit here. `namespaces` is the unit that holds the namespaces of containerd, `enter` the program
  # that enters them, and `end` the one that ends the daemon, where systemd cannot.
  user = { cfg, configFile, namespaces, enter, end ? null }:
    let
      # The daemon's default is that of root. A file of one's own has the last word.
      root =
        if cfg.settings.root != null then [ "--root" (word cfg.settings.root) ]
        else lib.optionals (cfg.configFile == null) [ "--root" "%h/.local/share/nix-snapshotter" ];
    in
    common // {
      description = "nix-snapshotter, a containerd snapshotter for Nix store paths (rootless)";
      after = [ namespaces ];
      bindsTo = [ namespaces ];
      path = cfg.path ++ mountPrograms cfg;
      unit.ConditionUser = "!@system";
      service = common.service // {
        # The one who is notified is outside, and nsenter turns into the daemon inside.
        NotifyAccess = "all";
        # Otherwise the journal calls it after the program that enters.
        SyslogIdentifier = "nix-snapshotter";
        ExecStart = toString ([ enter "${cfg.package}/bin/nix-snapshotter" "--config" "${configFile}" ] ++ root);
      } // lib.optionalAttrs (end != null) { ExecStop = end; } // patience cfg;
    };
}
