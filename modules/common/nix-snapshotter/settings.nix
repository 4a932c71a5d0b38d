# The keys of the daemon's configuration file as options. The defaults are the daemon's own, of
# `rust/crates/nix-snapshotter/src/config.rs`: a test compares both.
{ lib, toml, rootless }:
let
  inherit (lib) literalExpression mkOption types;
  noted = default: description: mkOption {
    inherit default description;
    type = if builtins.isBool default then types.bool else types.ints.unsigned;
  };
in
types.submodule {
  freeformType = toml.type;

  options = {
    address = mkOption {
      type = types.str;
      default = "/run/nix-snapshotter/nix-snapshotter.sock";
      description = ''
        The unix socket to serve on: an absolute path of at most 100 bytes, without `unix://`.
        ${lib.optionalString rootless "It is a path within the namespaces of containerd."}
      '';
    };

    root = mkOption
      {
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
      example = "containerd";
      description = "The group, by name or number, whose members may use the socket. `null` is nobody but its owner.";
    };

    shutdown_timeout = noted 10 "Seconds that requests in flight get to finish when the daemon is stopped.";

    store_dir = mkOption {
      type = types.str;
      default = builtins.storeDir;
      defaultText = literalExpression "builtins.storeDir";
      description = "The store directory of the machine's Nix.";
    };

    external_builder = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = literalExpression ''
        pkgs.writeShellScript "external-builder" '''
          exec ''${lib.getExe pkgs.nix} build --out-link "$1" "$2"
        '''
      '';
      description = ''
        A program that provides store paths in place of `nix-store --realise`. It is called once a path with two
        arguments, a link to make and the store path; afterwards the path must exist, and the link must be a GC root
        that names it.
      '';
    };

    realise_timeout = noted 3600 ''
      Seconds that one call of Nix or of the builder may take; `0` is without limit. It is a bound on what hangs, not on
      what is slow.
    '';

    max_realisations = mkOption {
      type = types.ints.between 1 65535;
      default = 8;
      description = "How many closures may be fetched or built at once.";
    };

    sync_remove = noted false ''
      Delete the directories of a snapshot when containerd removes it, and not only after its next garbage collection.
    '';

    upperdir_label = noted false ''
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
      description = ''
        Who lays the layers over one another. `fuse-overlayfs` is slower, and for machines whose kernel lets nobody mount
        overlays in a user namespace.
      '';
    };

    remap_ids = mkOption {
      type = types.enum [ "auto" true false ];
      default = "auto";
      description = ''
        Map the ids of containers in user namespaces by their mounts: where the machine can, always (and refuse to start
        where it cannot), or never.
      '';
    };

    log_format = mkOption {
      type = types.enum [ "text" "json" ];
      default = "text";
      description = "Lines of the log for people, or for programs.";
    };

    metrics.address = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "unix:///run/nix-snapshotter/metrics.sock";
      description = "Where to serve metrics for Prometheus: a unix socket, or a loopback address with a port.";
    };

    image_service = {
      enable = noted true "Serve the CRI's image service on the same socket, for kubelet.";

      containerd_address = mkOption {
        type = types.str;
        default = "/run/containerd/containerd.sock";
        description = "The socket of containerd: an absolute path, without `unix://`.";
      };

      snapshotter = mkOption {
        type = types.str;
        default = "nix";
        description = "The name that the daemon has below containerd's `[proxy_plugins]`.";
      };

      count_store_paths = noted false ''
        Add the sizes of all store paths that are held to what kubelet hears of the disk for images.
      '';
    };
  };
}
