# What k3s has as a service of the system and of a user: options, and how its embedded containerd comes to know the
# snapshotter, without a patch.
#
# k3s writes containerd's configuration itself. From the releases of March 2026 on it imports drop-in files, which
# containerd 2.x merges key by key (k3s #13680); earlier ones read a template, in which one table may not be written a
# second time, so that there the template has to import the drop-in file.
{ lib, pkgs }:
let
  inherit (lib) mkOption types;
  inherit (import ./containerd/settings.nix { inherit lib; }) nixSnapshotter toVersion3;
  toml = pkgs.formats.toml { };

  # The first releases of each line with drop-in files, and the first with containerd 2.x.
  hasDropIns = version:
    lib.versionAtLeast version "1.35.3"
    || lib.versionAtLeast version "1.34.6" && lib.versionOlder version "1.35"
    || lib.versionAtLeast version "1.33.10" && lib.versionOlder version "1.34";
  hasContainerd2 = version:
    lib.versionAtLeast version "1.32.2"
    || lib.versionAtLeast version "1.31.6" && lib.versionOlder version "1.32";

  # What is merged into the configuration that k3s writes for containerd 2.x, with annotations on, which k3s turns off for
  # every snapshotter that it does not know.
  dropIn = plugin: toVersion3 "2.0" (nixSnapshotter (plugin // { platform = "linux/${pkgs.go.GOARCH}"; }));

  configure = pkgs.writeShellApplication {
    name = "k3s-configure-containerd";
    runtimeInputs = [ pkgs.coreutils pkgs.gnugrep ];
    text = ''
      # k3s-configure-containerd DIRECTORY                takes back what it has put there
      # k3s-configure-containerd DIRECTORY FILE           has k3s merge FILE into containerd's configuration
      # k3s-configure-containerd DIRECTORY FILE template  the same, for a k3s that reads no drop-in files
      directory=$1 file=''${2-} template=''${3-}
      drop_in=$directory/config-v3.toml.d/nix-snapshotter.toml
      of_k3s=$directory/config-v3.toml.tmpl
      mark='{{/* of nix-snapshotter */ -}}'

      # Whoever has a template of their own keeps it.
      if [ -e "$of_k3s" ] && [ "$(head -n 1 "$of_k3s")" = "$mark" ]; then
        rm "$of_k3s"
      fi
      rm -f "$drop_in"
      if [ -z "$file" ]; then
        exit 0
      fi
      mkdir --parents "''${drop_in%/*}"
      cp --no-preserve=mode "$file" "$drop_in"
      if [ -z "$template" ]; then
        exit 0
      fi
      if [ ! -e "$of_k3s" ]; then
        printf '%s\n' "$mark" "imports = [\"$drop_in\"]" '{{ template "base" . }}' >"$of_k3s"
      elif ! grep --quiet --fixed-strings "$drop_in" "$of_k3s"; then
        echo "$of_k3s does not import $drop_in, without which containerd knows no nix-snapshotter. Write above its tables:
      imports = [\"$drop_in\"]" >&2
        exit 1
      fi
    '';
  };
in
{
  options = { kubeConfig }: {
    snapshotter = mkOption {
      type = types.enum [ "overlayfs" "fuse-overlayfs" "stargz" "nix" ];
      default = "overlayfs";
      example = "nix";
      description = ''
        The snapshotter of k3s' embedded containerd. `overlayfs` leaves the choice to k3s, whose default it is. `nix` is the
        nix-snapshotter of this project, as a plugin under the name of `services.nix-snapshotter.snapshotterName`; it is not
        the one that k3s has built in.
      '';
    };

    setKubeConfig = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether {env}`KUBECONFIG` is ${kubeConfig} in login shells.";
    };

    setEmbeddedContainerd = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether {env}`CONTAINERD_ADDRESS`, {env}`CONTAINERD_NAMESPACE` and {env}`CONTAINERD_SNAPSHOTTER` name k3s' embedded
        containerd in login shells.
      '';
    };
  };

  inherit configure dropIn;

  # The command that puts the drop-in file of `settings` below k3s' directory for containerd's configuration before k3s
  # starts; or that takes it back, where they are null.
  configureCommand = { version, directory, settings }: toString ([ "${configure}/bin/k3s-configure-containerd" directory ]
    ++ lib.optional (settings != null) (toml.generate "k3s-nix-snapshotter.toml" (dropIn settings))
    ++ lib.optional (settings != null && !hasDropIns version) "template");

  # `prefix` is where the options are, and `daemon` where those of its nix-snapshotter are.
  checks = { prefix, daemon, package, name, instead, containerdConfigTemplate ? null }: [
    {
      assertion = hasContainerd2 package.version;
      message = ''
        ${prefix}.snapshotter = "nix" needs the containerd 2 that k3s has since 1.31.6 and 1.32.2, and ${prefix}.package is
        ${package.version}. Choose a newer package${instead}.
      '';
    }
    {
      assertion = name != "nix";
      message = ''
        ${daemon}.snapshotterName is nix, which is the name of a snapshotter that k3s has built in: the embedded containerd
        would not start. Choose another one.
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
