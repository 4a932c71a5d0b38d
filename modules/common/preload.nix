# Loading images into containerd before anybody asks for them: options and unit.
{ lib }:
let
  inherit (lib) literalExpression mkEnableOption mkOption types;
  inherit (import ./command-line.nix { inherit lib; }) expand expands word;
in
{
  # `address` is where containerd listens unless a target says otherwise.
  options = { address, addressText, addressExample }: {
    enable = mkEnableOption "loading of images into containerd when it has started";

    targets = mkOption {
      default = [ ];
      example = literalExpression ''
        [
          {
            archives = [ (pkgs.nix-snapshotter.buildImage { name = "example.org/hello"; }) ];
            namespace = "k8s.io";
          }
        ]
      '';
      description = "Images, and where they are loaded to. An image that is there already is not loaded again.";
      type = types.listOf (types.submodule {
        options = {
          archives = mkOption {
            type = types.listOf (types.either types.package types.path);
            default = [ ];
            example = literalExpression "[ (pkgs.nix-snapshotter.buildImage { name = \"example.org/hello\"; }) ]";
            description = "Archives of images, as `buildImage` and `dockerTools` make them.";
          };

          address = mkOption {
            type = types.str;
            default = address;
            defaultText = addressText;
            example = addressExample;
            description = "The socket of containerd. `$XDG_RUNTIME_DIR`, `$HOME`, `$USER` and `$UID` in it are expanded.";
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

  # `option` is where the targets are, and `ways` what gives a containerd the snapshotter that they are unpacked for.
  checks = { option, targets, isIntegrated, ways }: [
    {
      assertion = isIntegrated;
      message = ''
        ${option} are images for nix-snapshotter, and there is no containerd with it to load them into. Set ${ways}.
      '';
    }
  ] ++ lib.concatLists (lib.imap0
    (index: target: map
      (name: expands "${option}.[${toString index}].${name}" target.${name})
      [ "address" "namespace" ])
    targets);

  # `containerd` is the unit of the one that images are loaded into, `daemon` has the options of nix-snapshotter.
  unit = { containerd, daemon, targets, wantedBy }: rec {
    description = "Images for containerd";
    inherit wantedBy;
    wants = [ containerd "nix-snapshotter.service" ];
    after = wants;
    service = {
      Type = "oneshot";
      RemainAfterExit = true;
      ExecStart = map
        (target: lib.concatStringsSep " " (
          [
            "${daemon.package}/bin/nix-snapshotter"
            "preload"
            (expand "--containerd-address=${target.address}")
            (expand "--namespace=${target.namespace}")
            "--snapshotter=${daemon.snapshotterName}"
          ] ++ map (archive: word "${archive}") target.archives
        ))
        (lib.filter (target: target.archives != [ ]) targets);
      # Kubernetes may not have started containerd yet.
      Restart = "on-failure";
      RestartSec = 5;
    };
  };
}
