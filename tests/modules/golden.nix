# What the main configurations are on a machine: units, the files that they name, and drop-in files of k3s.
#
# Gives texts by the paths that they have below tests/golden. A package is written @name@, without its hash and version;
# so is a file that is made of the configuration, and stands below files/.
{ pkgs, lib ? pkgs.lib, home-manager }:
let
  evaluate = import ./evaluate.nix { inherit lib pkgs home-manager; };
  toml = import ./toml.nix { inherit lib; };
  daemonFile = import ../../modules/common/nix-snapshotter/config-file.nix { inherit lib pkgs; };
  containerdFile = import ../../modules/common/containerd/config-file.nix { inherit lib pkgs; };
  namespaces = import ../../modules/common/containerd/namespaces.nix { inherit lib pkgs; };

  packagesByName = text: lib.concatMapStrings
    (part: if builtins.isString part then part else "@${lib.head part}@")
    (builtins.split "${builtins.storeDir}/[a-z0-9]{32}-([A-Za-z][A-Za-z0-9+._?=]*(-[A-Za-z][A-Za-z0-9+._?=]*)*)(-[0-9][A-Za-z0-9+._?=-]*)?"
      (builtins.unsafeDiscardStringContext text));

  # The manager of Home Manager writes units itself, and no function for it is to be had.
  unitText = sections: lib.concatStringsSep "\n" (lib.mapAttrsToList
    (section: directives: "[${section}]\n" + lib.concatStrings (lib.mapAttrsToList
      (name: it: lib.concatMapStrings
        (one: "${name}=${if builtins.isBool one then lib.boolToString one else toString one}\n")
        (lib.toList it))
      directives))
    sections);

  script = program: ''
    #!@bash@/bin/bash
    set -o errexit -o nounset -o pipefail
    export PATH="${lib.makeBinPath program.runtimeInputs}:$PATH"

    ${program.text}'';

  under = directory: lib.mapAttrs' (name: lib.nameValuePair "${directory}/${name}");
  pick = names: texts: lib.genAttrs names (name: texts.${name});

  archives = [ pkgs.hello-image pkgs.redis-image ];

  rootful = version:
    let
      containerd = pkgs.containerd // { inherit version; };
      inherit (evaluate.nixos {
        virtualisation.containerd = {
          enable = true;
          nixSnapshotterIntegration = true;
        };
        services.nix-snapshotter.enable = true;
        services.preload-containerd = {
          enable = true;
          targets = [{ inherit archives; }];
        };
      }) config units;
      inherit (config.virtualisation.containerd) settings;
    in
    under "system" (pick [ "containerd.service" "nix-snapshotter.service" "preload-containerd.service" ] units)
    // under "files" {
      "nix-snapshotter.toml" = toml (daemonFile config.services.nix-snapshotter).settings;
      "containerd.toml" = toml (containerdFile { package = containerd; inherit settings; }).settings;
    };
in
1
