# What the rootful and the rootless daemon both refuse.
#
#   prefix        where their options are
#   definitions   what `settings` are made of
#   containers    directories that other snapshotters have theirs in, and the daemon may have its own
#   foreign       directories of other snapshotters
{ lib }:
{ prefix, cfg, definitions, containers ? [ ], foreign }:
let
  inherit (cfg.settings) root;

  # With a slash at its end, so that what begins with one path is within it.
  normal = path: lib.concatMapStrings (name: "/${name}")
    (lib.filter (name: name != "" && name != ".") (lib.splitString "/" path)) + "/";
  isWithin = outer: path: lib.hasPrefix (normal outer) (normal path);

  # containerd has a directory for each of its parts, io.containerd.TYPE.VERSION.NAME.
  own = [ "io.containerd.snapshotter.v1.nix" "io.containerd.snapshotter.v1.${cfg.snapshotterName}" ];
  parts = lib.filter (name: lib.hasPrefix "io.containerd." name && !lib.elem name own) (lib.splitString "/" root);
  others =
    lib.filter (isWithin root) containers
    ++ lib.filter (directory: isWithin root directory || isWithin directory root) foreign
    ++ parts;

  # Whom `settings` are for besides the daemon, which reads `configFile` instead: containerd, kubelet and the units.
  forOthers = [ "address" "external_builder" "image_service" "overlay" "remap_ids" "root" ];
  withoutEffect = lib.subtractLists forOthers (lib.attrNames (lib.zipAttrs (lib.filter builtins.isAttrs definitions)));
in
{
  assertions = [
    {
      assertion = cfg.package ? checkConfig;
      message = ''
        ${prefix}.package is ${cfg.package.name or "a package"}, which has no `checkConfig`: it is not the package of this
        project. nixpkgs has the Go project under the same name. Leave the option alone, or take the package from
        `nix-snapshotter.packages.''${system}` or `nix-snapshotter.overlays.default`.
      '';
    }
    {
      assertion = root == null || others == [ ];
      message = ''
        ${prefix}.settings.root is ${toString root}, but ${lib.concatStringsSep " and " others} is where another snapshotter
        or containerd itself keeps its own. Two snapshotters on one root destroy each other's snapshots: choose a directory
        of its own.
      '';
    }
    {
      assertion = !(lib.hasPrefix "unix:" cfg.settings.address);
      message = ''
        ${prefix}.settings.address is ${cfg.settings.address}: write the path alone, without `unix://`.
      '';
    }
    {
      assertion = cfg.settings.external_builder == null || cfg.configFile == null;
      message = ''
        ${prefix}.settings.external_builder has no effect, because ${prefix}.configFile names another file. Set it there,
        or leave configFile out.
      '';
    }
  ];

  warnings =
    lib.optional (cfg.settings.image_service.snapshotter != cfg.snapshotterName) ''
      ${prefix}.settings.image_service.snapshotter is ${cfg.settings.image_service.snapshotter}, but containerd knows the
      snapshotter as ${cfg.snapshotterName} (${prefix}.snapshotterName): images of `nix:0` references will be unpacked for
      another snapshotter than containers are made with.
    ''
    ++ lib.optional (cfg.configFile != null && withoutEffect != [ ]) ''
      ${prefix}.settings.{${lib.concatStringsSep "," withoutEffect}} have no effect, because ${prefix}.configFile names
      another file. Set them there, or leave configFile out.
    '';
}
