# What the rootful and the rootless daemon both refuse. `prefix` is where their options are.
{ lib }:
{ prefix, cfg, foreignRoots }:
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
      assertion = !(builtins.elem cfg.settings.root foreignRoots);
      message = ''
        ${prefix}.settings.root is ${toString cfg.settings.root}, where another snapshotter keeps its own. Two
        snapshotters on one root destroy each other's snapshots: choose a directory of its own.
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

  warnings = lib.optional (cfg.settings.image_service.snapshotter != cfg.snapshotterName) ''
    ${prefix}.settings.image_service.snapshotter is ${cfg.settings.image_service.snapshotter}, but containerd knows the
    snapshotter as ${cfg.snapshotterName} (${prefix}.snapshotterName): images of `nix:0` references will be unpacked for
    another snapshotter than containers are made with.
  '';
}
