# Loading images into containerd before anybody asks for them: options and unit.
{ lib }:
let
  inherit (lib) mkEnableOption mkOption types;
  # systemd knows these two, and a shell is not there.
  expand = lib.replaceStrings
    [ "\${XDG_RUNTIME_DIR}" "$XDG_RUNTIME_DIR" "\${HOME}" "$HOME" ]
    [ "%t" "%t" "%h" "%h" ];
in
{
  # `address` is where containerd listens unless a target says otherwise.
  options = { address, addressText }: {
    enable = mkEnableOption "loading of images into containerd when it has started";

    targets = mkOption {
      default = [ ];
      description = "Images, and where they are loaded to. An image that is there already is not loaded again.";
      type = types.listOf (types.submodule {
        options = {
          archives = mkOption {
            type = types.listOf (types.either types.package types.path);
            default = [ ];
            description = "Archives of images, as `buildImage` and `dockerTools` make them.";
          };

          address = mkOption {
            type = types.str;
            default = address;
            defaultText = addressText;
            description = "The socket of containerd.";
          };

          namespace = mkOption {
            type = types.str;
            default = "default";
            example = "k8s.io";
            description = "The namespace of containerd; Kubernetes uses `k8s.io`.";
          };
        };
      });
    };
  };

  # There is nothing to do without archives.
  isNeeded = cfg: cfg.enable && lib.any (target: target.archives != [ ]) cfg.targets;

  # `containerd` is the unit of the one that images are loaded into, `daemon` has the options of nix-snapshotter.
  unit = { containerd, daemon, targets, wantedBy }: rec {
    description = "Images for containerd";
    inherit wantedBy;
    wants = [ containerd ] ++ lib.optional daemon.enable "nix-snapshotter.service";
    after = wants;
    service = {
      Type = "oneshot";
      RemainAfterExit = true;
      ExecStart = map
        (target: lib.concatStringsSep " " (
          [
            "${daemon.package}/bin/nix-snapshotter"
            "preload"
            "--containerd-address=${expand target.address}"
            "--namespace=${target.namespace}"
            "--snapshotter=${daemon.snapshotterName}"
          ] ++ map toString target.archives
        ))
        (lib.filter (target: target.archives != [ ]) targets);
      # Kubernetes may not have started containerd yet.
      Restart = "on-failure";
      RestartSec = 5;
    };
  };
}
