# The daemon's unit, for the system's manager and for a user's.
{ lib }:
let
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

  # What the daemon has to do with the machine: it reads and deletes files of any owner, asks the kernel what overlays
  # can do, and speaks with containerd and Nix through sockets. It mounts nothing: that is containerd's. RestrictSUIDSGID
  # is not among these, because its filter forbids openat2, by which the trees of snapshots are deleted.
  hardening = {
    # chown of a root to the one that containerd asks for; files whose owner is another, and their modes; overlays and
    # the attributes `trusted.overlay.*`. Nothing else.
    CapabilityBoundingSet = [
      "CAP_CHOWN"
      "CAP_DAC_OVERRIDE"
      "CAP_DAC_READ_SEARCH"
      "CAP_FOWNER"
      "CAP_FSETID"
      "CAP_SYS_ADMIN"
    ];
    # Nix calls no setuid program.
    NoNewPrivileges = true;
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    # No device is needed; overlays are none.
    PrivateDevices = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    # Nix reads ~/.config/nix and ~/.netrc.
    ProtectHome = "read-only";
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelTunables = true;
    # Its root, its socket and its cache are excepted below.
    ProtectSystem = "strict";
    RemoveIPC = true;
    # Nix and containerd by unix sockets; metrics on the loopback device.
    RestrictAddressFamilies = [ "AF_UNIX" "AF_INET" "AF_INET6" ];
    RestrictNamespaces = true;
    RestrictRealtime = true;
    SystemCallArchitectures = "native";
    # @mount to ask the kernel what overlays can do; nothing is mounted.
    SystemCallFilter = [ "@system-service" "@mount" ];
    SystemCallErrorNumber = "EPERM";
  };

  # systemd makes what lies below /var/lib; another place has to be there.
  writable = root:
    if lib.hasPrefix "/var/lib/" root
    then {
      StateDirectory = lib.removePrefix "/var/lib/" root;
      StateDirectoryMode = "0700";
    }
    else { ReadWritePaths = [ root ]; };
in
{
  system = { cfg, configFile }:
    common // {
      description = "nix-snapshotter, a containerd snapshotter for Nix store paths";
      wantedBy = [ "multi-user.target" ];
      wants = [ "nix-daemon.socket" ];
      after = [ "network.target" "nix-daemon.socket" ];
      inherit (cfg) path;
      environment = common.environment // { XDG_CACHE_HOME = "/var/cache/nix-snapshotter"; };
      service = common.service // {
        ExecStart = "${cfg.package}/bin/nix-snapshotter --config ${configFile}";
        RuntimeDirectory = "nix-snapshotter";
        # containerd keeps its connection to the socket's path over a restart.
        RuntimeDirectoryPreserve = true;
        CacheDirectory = "nix-snapshotter";
      }
      // writable cfg.settings.root
      # A builder may need anything.
      // lib.optionalAttrs (cfg.settings.external_builder == null && cfg.configFile == null) hardening;
    };

  # `namespaces` is the unit that holds the namespaces of containerd, `enter` the program that enters them.
  user = { cfg, configFile, namespaces, enter }:
    let
      root = if cfg.settings.root != null then cfg.settings.root else "%h/.local/share/nix-snapshotter";
    in
    common // {
      description = "nix-snapshotter, a containerd snapshotter for Nix store paths (rootless)";
      after = [ namespaces ];
      bindsTo = [ namespaces ];
      path = cfg.path;
      service = common.service // {
        # The one who is notified is outside, and nsenter turns into the daemon inside.
        NotifyAccess = "all";
        ExecStart = "${enter} ${cfg.package}/bin/nix-snapshotter --config ${configFile} --root ${root}";
      };
    };
}
