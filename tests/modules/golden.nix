# What the main configurations are on a machine.
#
# Gives `texts` by the paths that they have below tests/golden. A package is written @name@, without its hash and version;
# so is a file that is made of the configuration, and stands below files/.
#
#   system/, user/   units
#   files/           files and programs that these name
#   links            files at places that programs know, as lines of `PLACE FILE`
#   packages         those whose programs users have on their PATH
#   profile          what a login shell reads
#   tmpfiles.conf    as tmpfiles.d(5) describes it
#
# And the paths of those that are `stale`, whatever the release of nixpkgs: its own units are left out, and what it adds to
# every unit. The texts are of x86_64-linux and of the release that dev/test-nix is run with.
{ pkgs, lib ? pkgs.lib, home-manager }:
let
  evaluate = import ./evaluate.nix { inherit lib pkgs home-manager; };
  toml = import ./toml.nix { inherit lib; };
  daemonFile = import ../../modules/common/nix-snapshotter/config-file.nix { inherit lib pkgs; };
  containerdFile = import ../../modules/common/containerd/config-file.nix { inherit lib pkgs; };
  namespaces = import ../../modules/common/containerd/namespaces.nix { inherit lib pkgs; };
  checkIds = import ../../modules/common/containerd/subordinate-ids.nix { inherit pkgs; };
  k3s = import ../../modules/common/k3s.nix { inherit lib pkgs; };
  export = import ../../modules/common/environment.nix { inherit lib; };
  inherit (import ../../modules/common/unit.nix { inherit lib; }) toText;

  packagesByName = text: lib.concatMapStrings
    (part: if builtins.isString part then part else "@${lib.head part}@")
    (builtins.split "${builtins.storeDir}/[a-z0-9]{32}-([A-Za-z][A-Za-z0-9+._?=]*(-[A-Za-z][A-Za-z0-9+._?=]*)*)(-[0-9][A-Za-z0-9+._?=-]*)?"
      (builtins.unsafeDiscardStringContext text));

  # The options of units that nobody sets are null or empty lists in newer releases of Home Manager.
  unitText = unit: toText (lib.mapAttrs (_: lib.filterAttrs (_: value: value != null)) unit);

  # As writeShellApplication puts it together. Where nothing can be built, its parts are what there is.
  script = program: lib.concatStringsSep "\n" ([ "#!/usr/bin/env bash" ] ++ (
    if program ? runtimeInputs
    then [
      "set -o errexit"
      "set -o nounset"
      "set -o pipefail"
      ""
      "export PATH=\"${lib.makeBinPath program.runtimeInputs}:$PATH\""
      ""
      program.text
    ]
    else lib.tail (lib.splitString "\n" (lib.removeSuffix "\n" program.text))
  ));

  under = directory: lib.mapAttrs' (name: lib.nameValuePair "${directory}/${name}");
  pick = names: texts: lib.genAttrs names (name: texts.${name});

  inherit (import ../../pkgs/examples.nix { inherit pkgs; }) hello redis;
  targets = [{ archives = [ hello redis ]; }];
  k3sOfToday = pkgs.k3s // { version = "1.35.4+k3s1"; };

  containerdFiles = settings: {
    # containerd 2.x reads the one, containerd 1.7 the other.
    "containerd.toml" = toml (containerdFile { package.version = "2.2.0"; inherit settings; }).settings;
    "containerd-1.7.toml" = toml (containerdFile { package.version = "1.7.0"; inherit settings; }).settings;
  };

  daemonFiles = cfg: { "nix-snapshotter.toml" = toml (daemonFile cfg).settings; };

  lines = lib.concatMapStrings (line: "${line}\n");

  # Of /etc what is for the daemon's programs, and of all packages those that `candidates` are.
  shown = { environment, ... }: candidates: {
    packages = lines (lib.filter (package: lib.elem package environment.systemPackages) candidates);
    links = lines (lib.mapAttrsToList (name: file: "/etc/${name} ${file.source}")
      (lib.filterAttrs (name: _: builtins.match "(containerd|nix-snapshotter)/.*" name != null) environment.etc));
  };

  tmpfiles = settings: lib.concatLists (lib.mapAttrsToList
    (path: lib.mapAttrsToList
      (type: rule: toString [ type path rule.mode rule.user rule.group rule.age rule.argument ]))
    settings);

  rootful = {
    virtualisation.containerd = {
      enable = true;
      nixSnapshotterIntegration = true;
    };
    services.nix-snapshotter.enable = true;
    services.preload-containerd = { enable = true; inherit targets; };
  };

  rootless = {
    virtualisation.containerd.rootless = {
      enable = true;
      nixSnapshotterIntegration = true;
    };
    services.nix-snapshotter.rootless.enable = true;
    services.preload-containerd.rootless = { enable = true; inherit targets; };
  };

  user = module: evaluate.nixos {
    imports = [ module ];
    users.users.alice = {
      isNormalUser = true;
      linger = true;
    };
  };

  rootlessFiles = config:
    let
      cfg = config.virtualisation.containerd.rootless;
      programs = namespaces { inherit (cfg) bindMounts; };
    in
    containerdFiles cfg.settings
    // daemonFiles config.services.nix-snapshotter.rootless
    // {
      check-subordinate-ids = script checkIds;
      containerd-namespaces = script programs.hold;
      containerd-namespaces-child = script programs.child;
      containerd-namespaces-end = script programs.end;
      containerd-nsenter = script programs.nsenter;
    };

  configurations = {
    rootful =
      let inherit (evaluate.nixos rootful) config units; in
      under "system" (pick [ "containerd.service" "nix-snapshotter.service" "preload-containerd.service" ] units)
      // under "files" (containerdFiles config.virtualisation.containerd.settings // daemonFiles config.services.nix-snapshotter)
      // shown config [ config.services.nix-snapshotter.package pkgs.containerd ];

    # What differs from the above.
    external-builder =
      let
        inherit (evaluate.nixos {
          imports = [ rootful ];
          services.nix-snapshotter.settings.external_builder = pkgs.writeShellScript "external-builder" "";
        }) config units;
      in
      under "system" (pick [ "nix-snapshotter.service" ] units)
      // under "files" (daemonFiles config.services.nix-snapshotter);

    socket-elsewhere =
      let
        inherit (evaluate.nixos {
          imports = [ rootful ];
          services.nix-snapshotter.settings.address = "/run/containerd/nix-snapshotter.sock";
        }) config units;
      in
      under "system" (pick [ "nix-snapshotter.service" ] units)
      // under "files" (containerdFiles config.virtualisation.containerd.settings // daemonFiles config.services.nix-snapshotter)
      // { "tmpfiles.conf" = lines (tmpfiles config.systemd.tmpfiles.settings."10-nix-snapshotter"); };
    # What the package has for other distributions.
    package = under "system" {
      "nix-snapshotter.service" = import ../../pkgs/systemd-unit.nix { inherit lib pkgs; } pkgs.nix-snapshotter;
    };

    rootless =
      let inherit (user rootless) config userUnits; in
      under "user"
        (pick [ "containerd-namespaces.service" "containerd.service" "nix-snapshotter.service" "preload-containerd.service" ]
          userUnits)
      // under "files" (rootlessFiles config)
      // shown config [
        config.services.nix-snapshotter.rootless.package
        config.virtualisation.containerd.rootless.nsenter
        config.virtualisation.containerd.rootless.package
      ]
      // { profile = export config.services.nix-snapshotter.userServices.variables; };

    # What differs from the above.
    bind-mounts =
      let
        inherit (user {
          imports = [ rootless ];
          virtualisation.containerd.rootless.bindMounts = {
            "$HOME/of-containerd".mountPoint = "/var/lib/containerd/within";
            "$HOME/shown".mountPoint = "$HOME/hidden";
          };
        }) config;
      in
      under "files" (pick [ "containerd-namespaces-child" ] (rootlessFiles config));

    # The files are those of the above.
    home-manager = lib.optionalAttrs (home-manager != null)
      (under "user" (lib.mapAttrs' (name: unit: lib.nameValuePair "${name}.service" (unitText unit))
        (pick [ "containerd-namespaces" "containerd" "nix-snapshotter" "preload-containerd" ]
          (evaluate.homeManager rootless).userServices)));

    k3s =
      let
        inherit (evaluate.nixos {
          services.k3s = {
            enable = true;
            package = k3sOfToday;
            snapshotter = "nix";
          };
        }) config units;
        cfg = config.services.nix-snapshotter;
      in
      under "system" (pick [ "k3s.service" "nix-snapshotter.service" ] units)
      // under "files" (daemonFiles cfg // {
        "k3s-nix-snapshotter.toml" = toml (k3s.dropIn {
          name = cfg.snapshotterName;
          inherit (cfg.settings) address root;
          idMappedMounts = true;
        });
        k3s-configure-containerd = script k3s.configure;
      });

    k3s-external =
      let
        inherit (evaluate.nixos {
          imports = [ rootful ];
          virtualisation.containerd.k3sIntegration = true;
          services.k3s = {
            enable = true;
            package = k3sOfToday;
          };
        }) config units;
      in
      under "system" (pick [ "containerd.service" "k3s.service" "nix-snapshotter.service" ] units)
      // under "files" (containerdFiles config.virtualisation.containerd.settings);

    k3s-rootless =
      let
        inherit (user {
          services.k3s.rootless = {
            enable = true;
            package = k3sOfToday;
            snapshotter = "nix";
            setEmbeddedContainerd = true;
          };
        }) config userUnits;
        cfg = config.services.nix-snapshotter.rootless;
      in
      under "user" (pick [ "k3s.service" "nix-snapshotter.service" ] userUnits)
      // under "files" (daemonFiles cfg // {
        check-subordinate-ids = script checkIds;
        "k3s-nix-snapshotter.toml" = toml (k3s.dropIn {
          name = cfg.snapshotterName;
          inherit (cfg.settings) address;
          root = "/var/lib/kubelet";
          idMappedMounts = false;
        });
        k3s-configure-containerd = script k3s.configure;
        k3s-nsenter = script config.services.k3s.rootless.nsenter;
        k3s-nsenter-end = script (import ../../modules/common/k3s-namespaces.nix { inherit pkgs; }).end;
      })
      // shown config [ cfg.package config.services.k3s.rootless.nsenter config.services.k3s.rootless.package ]
      // { profile = export config.services.nix-snapshotter.userServices.variables; };
  };
  texts = lib.concatMapAttrs
    (name: files: under name (lib.mapAttrs (_: packagesByName) files))
    configurations;

  isOfNixpkgs = path: lib.any (unit: lib.hasSuffix "/system/${unit}.service" path) [ "containerd" "k3s" ];
  ours = text: lib.replaceStrings [ "linux/${pkgs.go.GOARCH}" ] [ "linux/amd64" ] (lib.concatStringsSep "\n"
    (lib.filter (line: builtins.match "Environment=\"(LOCALE_ARCHIVE|PATH|TZDIR)=.*" line == null)
      (lib.splitString "\n" text)));
  isStale = path: text:
    let file = ../golden + "/${path}"; in
    !(isOfNixpkgs path) && !(builtins.pathExists file && ours text == ours (builtins.readFile file));
in
{
  inherit texts;
  stale = lib.attrNames (lib.filterAttrs isStale texts);
}
