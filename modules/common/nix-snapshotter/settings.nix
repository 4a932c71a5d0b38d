# The keys of the daemon's configuration file as options, a module of them. The defaults are the daemon's own, of
# `rust/crates/nix-snapshotter/src/config.rs`: a test compares both.
{ lib, toml, rootless }:
let
  inherit (lib) literalExpression mkOption types;
  noted = default: example: description: mkOption {
    inherit default description example;
    type = if builtins.isBool default then types.bool else types.ints.unsigned;
  };
in
{
  freeformType = toml.type;

  options = {
    address = mkOption {
      type = types.str;
      default = "/run/nix-snapshotter/nix-snapshotter.sock";
      example = "/run/nix-snapshotter/${if rootless then "user" else "system"}.sock";
      description = ''
        The unix socket to serve on: an absolute path of at most 100 bytes, without `unix://`.
        ${if rootless then ''
          It is a path within the namespaces of containerd, in a directory of its own below {file}`/run`.
        '' else ''
          A directory that bears the daemon's name, such as {file}`/run/nix-snapshotter`, comes and goes with it; another
          one is made when the machine starts, and stays.
        ''}
      '';
    };

    root = mkOption
      {
        example = if rootless then "/home/alice/snapshots" else "/data/nix-snapshotter";
        description = ''
          Where snapshots, their metadata and their GC roots are kept; one daemon a root. It must lie on a file system
          that can carry the upper directory of an overlay, and `:`, `,` and `\` must not occur in it.
          ${lib.optionalString rootless ''
            The path must be the same within the namespaces of containerd and outside, where Nix looks for GC roots.
            `null` is {file}`~/.local/share/nix-snapshotter`.
          ''}
        '';
      } // (if rootless then {
      type = types.nullOr types.str;
      default = null;
    } else {
      type = types.str;
      default = "/var/lib/containerd/io.containerd.snapshotter.v1.nix";
    });

    socket_group = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "wheel";
      description = ''
        The group, by name or number, whose members may use the socket. It has to be there already. `null` is nobody but the
        owner.
      '';
    };

    shutdown_timeout = noted 10 60 "Seconds that requests in flight get to finish when the daemon is stopped.";

    store_dir = mkOption {
      type = types.str;
      default = builtins.storeDir;
      defaultText = literalExpression "builtins.storeDir";
      example = "/nix/store";
      description = "The store directory of the machine's Nix.";
    };

    external_builder = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = literalExpression ''
        pkgs.writeShellScript "external-builder" '''
          exec ''${pkgs.nix}/bin/nix-store --realise "$2" --add-root "$1"
        '''
      '';
      description = ''
        A program that provides store paths in place of `nix-store --realise`. It is called once a path with two
        arguments, a link to make and the store path; afterwards the path must exist, and the link must be a GC root
        that names it.${lib.optionalString (!rootless) ''

          It runs within the daemon's unit, for which nearly everything is read-only: it may write to
          {file}`/var/cache/nix-snapshotter`, {file}`/run/nix-snapshotter`, a {file}`/tmp` of its own and, through nix-daemon,
          to the store. `systemd.services.nix-snapshotter.serviceConfig.ReadWritePaths` names further places.''}
      '';
    };

    realise_timeout = noted 3600 0 ''
      Seconds that one call of Nix or of the builder may take; `0` is without limit. It is a bound on what hangs, not on
      what is slow.
    '';

    max_realisations = mkOption {
      type = types.ints.between 1 65535;
      default = 8;
      example = 2;
      description = "How many closures may be fetched or built at once.";
    };

    sync_remove = noted false true ''
      Delete the directories of a snapshot when containerd removes it, and not only after its next garbage collection.
    '';

    upperdir_label = noted false true ''
      Show the upper directory of each snapshot in the label `containerd.io/snapshot/overlay.upperdir`.
    '';

    mount_options = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "volatile" ];
      description = "Further options of every overlay mount.";
    };

    overlay = mkOption {
      type = types.enum [ "kernel" "fuse-overlayfs" ];
      default = "kernel";
      example = "fuse-overlayfs";
      description = ''
        Who lays the layers over one another. `fuse-overlayfs` is slower, and for machines whose kernel lets nobody mount
        overlays in a user namespace.
      '';
    };

    remap_ids = mkOption {
      type = types.enum [ "auto" true false ];
      default = "auto";
      example = false;
      description = ''
        Map the ids of containers in user namespaces by their mounts: where the machine can, always (and refuse to start
        where it cannot), or never.
      '';
    };

    log_format = mkOption {
      type = types.enum [ "text" "json" ];
      default = "text";
      example = "json";
      description = "Lines of the log for people, or for programs.";
    };

    metrics.address = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "unix:///run/nix-snapshotter/metrics.sock";
      description = "Where to serve metrics for Prometheus: a unix socket, or a loopback address with a port.";
    };

    image_service = {
      enable = noted true false "Serve the CRI's image service on the same socket, for kubelet.";

      containerd_address = mkOption {
        type = types.str;
        default = "/run/containerd/containerd.sock";
        example = "/run/k3s/containerd/containerd.sock";
        description = "The socket of containerd: an absolute path, without `unix://`.";
      };

      snapshotter = mkOption {
        type = types.str;
        default = "nix";
        example = "nix-store";
        description = "The name that the daemon has below containerd's `[proxy_plugins]`.";
      };

      count_store_paths = noted false true ''
        Add the sizes of store paths to those of images and to what is in use, as kubelet hears of them. For a store on the disk that kubelet watches for images.
      '';
    };
  };
}
