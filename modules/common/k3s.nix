# What k3s has as a service of the system and of a user: options, and how its embedded containerd comes to know the
# snapshotter, without a patch.
#
# k3s writes containerd's configuration itself. From the releases of March 2026 on it imports drop-in files, which
# containerd 2.x merges key by key (k3s #13680); earlier ones read a template, in which one table may not be written a
# second time, so that there the template has to import the drop-in file.
{ lib, pkgs }:
let
  inherit (lib) mkOption types;
  toml = pkgs.formats.toml { };

  # The first releases of each line with drop-in files, and the first with containerd 2.x.
  hasDropIns = version:
    lib.versionAtLeast version "1.35.3"
    || lib.versionAtLeast version "1.34.6" && lib.versionOlder version "1.35"
    || lib.versionAtLeast version "1.33.10" && lib.versionOlder version "1.34";
  hasContainerd2 = version:
    lib.versionAtLeast version "1.32.2"
    || lib.versionAtLeast version "1.31.6" && lib.versionOlder version "1.32";
  # What is merged into the configuration that k3s writes for containerd 2.x.
  dropIn = { name, address, root }: {
    version = 3;
    proxy_plugins.${name} = {
      type = "snapshot";
      inherit address;
      exports = {
        inherit root;
        enable_remote_snapshot_annotations = "true";
      };
    };
    # k3s turns annotations off for every snapshotter that it does not know.
    plugins."io.containerd.cri.v1.images" = {
      snapshotter = name;
      disable_snapshot_annotations = false;
    };
  };
in
{
  options = { kubeConfig }: {
    snapshotter = mkOption {
      type = types.enum [ "overlayfs" "fuse-overlayfs" "stargz" "nix" ];
      default = "overlayfs";
      description = ''
        The snapshotter of k3s' embedded containerd. `nix` is the nix-snapshotter of this project, as a plugin under the
        name of `services.nix-snapshotter.snapshotterName`; it is not the one that k3s has built in.
      '';
    };

    setKubeConfig = mkOption {
      type = types.bool;
      default = false;
      description = "Whether {env}`KUBECONFIG` is ${kubeConfig} in login shells.";
    };

    setEmbeddedContainerd = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether {env}`CONTAINERD_ADDRESS`, {env}`CONTAINERD_NAMESPACE` and {env}`CONTAINERD_SNAPSHOTTER` name k3s' embedded
        containerd in login shells.
      '';
    };
  };

  inherit dropIn;

  # Files below k3s' directory for containerd's configuration, by their names. `directory` is where that is.
  containerdFiles = { version, directory, name, address, root }:
    let
      file = "config-v3.toml.d/nix-snapshotter.toml";
    in
    {
      ${file} = toml.generate "k3s-nix-snapshotter.toml" (dropIn { inherit name address root; });
    } // lib.optionalAttrs (!hasDropIns version) {
      "config-v3.toml.tmpl" = pkgs.writeText "k3s-config-v3.toml.tmpl" ''
        imports = ["${directory}/${file}"]
        {{ template "base" . }}
      '';
    };

  # `prefix` is where the options are; `name` is that of the snapshotter.
  checks = { prefix, package, name, containerdConfigTemplate ? null }: [
    {
      assertion = hasContainerd2 package.version;
      message = ''
        ${prefix}.snapshotter = "nix" needs the containerd 2 that k3s has since 1.31.6 and 1.32.2, and ${prefix}.package is
        ${package.version}. Choose a newer package, or set virtualisation.containerd.k3sIntegration and
        virtualisation.containerd.nixSnapshotterIntegration, which give k3s a containerd of its own.
      '';
    }
    {
      assertion = name != "nix";
      message = ''
        services.nix-snapshotter.snapshotterName is nix, which is the name of a snapshotter that k3s has built in: the
        embedded containerd would not start. Choose another one.
      '';
    }
    {
      assertion = containerdConfigTemplate == null;
      message = ''
        ${prefix}.containerdConfigTemplate is a configuration of version 2, with which k3s does not read the one of
        nix-snapshotter. Write what it adds to a file of version 3 below
        /var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d instead.
      '';
    }
  ];
}
