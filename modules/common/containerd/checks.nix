# What containerd as a service of the system and of a user both refuse.
#
#   prefix    where their options are
#   daemon    where those of their nix-snapshotter are
#   package   the containerd that runs
#   file      what its configuration is made to, and it is to be started with
#   disableCgroup   what the modules themselves write of it, if anything
{ lib }:
{ prefix, daemon, cfg, package, file, disableCgroup ? null }:
let
  isRuntime = name: cfg.settings ? plugins."io.containerd.grpc.v1.cri".containerd.runtimes.${name}
    || cfg.settings ? plugins."io.containerd.cri.v1.runtime".containerd.runtimes.${name};
  version = cfg.settings.version or 2;
  cgroup = cfg.settings.plugins."io.containerd.grpc.v1.cri".disable_cgroup or null;
in
{
  assertions = [
    {
      assertion = version <= 2 || lib.versionAtLeast package.version "2";
      message = ''
        ${prefix}.settings.version is ${toString version}, and containerd ${package.version} reads version 2 at most. Leave
        it out, and the file is written in the version that this containerd reads best.
      '';
    }
    {
      # The Go project's tests set it here, where nobody reads it.
      assertion = !(cfg.settings ? external_builder);
      message = ''
        ${prefix}.settings.external_builder is no key of containerd: write it to ${daemon}.settings.external_builder.
      '';
    }
    {
      assertion = cfg.nixSnapshotterIntegration -> cfg.args.config == file;
      message = ''
        ${prefix}.nixSnapshotterIntegration has no effect, because ${prefix}.args.config names another file,
        ${cfg.args.config}. Write its content to ${prefix}.settings, or leave the integration out and set it up there.
      '';
    }
    {
      assertion = cfg.nixSnapshotterIntegration -> lib.versionAtLeast package.version "1.7";
      message = ''
        ${prefix}.nixSnapshotterIntegration is set, and containerd is ${package.version}: nix-snapshotter needs 1.7 or newer.
      '';
    }
  ];

  warnings =
    lib.optional (cfg.defaultRuntime == "runsc" && !(isRuntime "runsc")) ''
      ${prefix}.defaultRuntime is runsc, a runtime that nothing defines: pods will not start. Set ${prefix}.gVisorIntegration.
    ''
    ++ lib.optional (cgroup != disableCgroup && cgroup != null && lib.versionAtLeast package.version "2") ''
      ${prefix}.settings has disable_cgroup, which containerd ${package.version} does not know: since 2.0 pods
      always have control groups. Remove it.
    '';
}
