# What the integrations add to containerd's configuration, and the two versions of that file. Pure functions.
#
# Settings are written for version 2, as nixpkgs and users write them. `toVersion3` moves what the CRI has in other
# tables since containerd 2.0. containerd itself would do the same with a file of version 2, but overlooks `snapshotter`
# in one that has no table of a runtime (2.0 to 2.4, `plugins/cri/images/plugin.go`).
{ lib }:
let
  cri = "io.containerd.grpc.v1.cri";
  images = "io.containerd.cri.v1.images";
  runtime = "io.containerd.cri.v1.runtime";

  # Keys of version 2, by where they are in version 3 (containerd 2.2, `internal/cri/config/config.go`).
  imageKeys = [
    "image_decryption"
    "image_pull_progress_timeout"
    "image_pull_with_sync_fs"
    "max_concurrent_downloads"
    "registry"
    "stats_collect_period"
  ];
  imageKeysOfContainerd = [ "disable_snapshot_annotations" "discard_unpacked_layers" "snapshotter" ];
  serverKeys = [
    "disable_tcp_service"
    "enable_tls_streaming"
    "stream_idle_timeout"
    "stream_server_address"
    "stream_server_port"
    "x509_key_pair_streaming"
  ];

  pick = names: lib.filterAttrs (name: _: builtins.elem name names);
  renameSandboxMode = attrs:
    builtins.removeAttrs attrs [ "sandbox_mode" ]
    // lib.optionalAttrs (attrs ? sandbox_mode) { sandboxer = attrs.sandbox_mode; };
in
{
  # For a containerd whose snapshotter is `name`, and that of the CRI `ofCri`. `platform` is that of the machine, as OCI
  # writes it; `idMappedMounts` whether the daemon maps the ids of containers by their mounts (containerd 2.0);
  # `hasOverlayfs` whether containerd's own overlayfs works there.
  nixSnapshotter = { name, ofCri ? name, address, root, platform, idMappedMounts, hasOverlayfs ? true }: {
    plugins.${cri}.containerd = {
      snapshotter = ofCri;
      # Without annotations the snapshotter does not know which store paths a layer is.
      disable_snapshot_annotations = false;
    };

    # `ctr pull` and others through the transfer service, which knows only the snapshotters that are listed, and does not
    # start where one of them does not.
    plugins."io.containerd.transfer.v1.local".unpack_config = map
      (snapshotter: { inherit platform snapshotter; })
      ([ name ] ++ lib.optional hasOverlayfs "overlayfs");

    proxy_plugins.${name} = {
      type = "snapshot";
      inherit address;
      exports = {
        # kubelet watches the file system of this directory.
        inherit root;
        # containerd 2.1 tells the snapshotter which image a layer is of.
        enable_remote_snapshot_annotations = "true";
      };
    } // lib.optionalAttrs idMappedMounts {
      capabilities = [ "remap-ids" "only-remap-ids" ];
    };
  };

  # What nixpkgs' module leaves to containerd's own defaults.
  runtimes = { defaultRuntime, cniBinDir }: {
    plugins.${cri} = {
      cni = {
        bin_dir = lib.mkOptionDefault cniBinDir;
        conf_dir = lib.mkOptionDefault "/etc/cni/net.d";
      };
      containerd = {
        default_runtime_name = lib.mkDefault defaultRuntime;
        runtimes.runc.runtime_type = lib.mkOptionDefault "io.containerd.runc.v2";
      };
    };
  };

  gVisor.plugins.${cri}.containerd.runtimes.runsc.runtime_type = "io.containerd.runsc.v1";

  # A user who is not root may set neither.
  rootless.plugins.${cri} = lib.mapAttrs (_: lib.mkDefault) {
    disable_apparmor = true;
    disable_cgroup = true;
    restrict_oom_score_adj = true;
  };

  # containerd beside a k3s that does not start its own.
  k3s = { cniBinDir }: {
    plugins.${cri} = lib.mapAttrsRecursive (_: lib.mkDefault) {
      stream_server_address = "127.0.0.1";
      stream_server_port = "10010";
      enable_selinux = false;
      enable_unprivileged_ports = true;
      enable_unprivileged_icmp = true;
      cni = {
        conf_dir = "/var/lib/rancher/k3s/agent/etc/cni/net.d/";
        bin_dir = cniBinDir;
      };
    };
  };

  # The whole of a configuration as one of version 3, for a release of containerd. In one of version 3 or later, whoever
  # adds to it may still have written for version 2.
  toVersion3 = release: settings:
    let
      old = settings.plugins.${cri} or { };
      containerd = old.containerd or { };
      newContainerd =
        builtins.removeAttrs containerd imageKeysOfContainerd
        // lib.optionalAttrs (containerd ? runtimes) {
          runtimes = lib.mapAttrs (_: renameSandboxMode) containerd.runtimes;
        };

      newImages =
        pick imageKeys old
        // pick imageKeysOfContainerd containerd
        // lib.optionalAttrs (old ? sandbox_image) { pinned_images.sandbox = old.sandbox_image; };

      newRuntime =
        # containerd 2.0 has no `disable_cgroup`.
        builtins.removeAttrs old (imageKeys ++ serverKeys ++ [ "containerd" "disable_cgroup" "sandbox_image" ])
        # containerd 2.1 has a list in the place of `bin_dir`, which it deprecates.
        // lib.optionalAttrs (old ? cni.bin_dir && lib.versionAtLeast release "2.1") {
          cni = builtins.removeAttrs old.cni [ "bin_dir" ] // { bin_dirs = [ old.cni.bin_dir ]; };
        }
        // lib.optionalAttrs (newContainerd != { }) { containerd = newContainerd; };

      moved = lib.filterAttrs (_: table: table != { }) {
        ${cri} = pick serverKeys old;
        ${images} = newImages;
        ${runtime} = newRuntime;
      };
    in
    settings // {
      version = lib.max 3 (settings.version or 2);
      # What is written for version 3 already wins.
      plugins = lib.recursiveUpdate moved (builtins.removeAttrs (settings.plugins or { }) [ cri ]);
    };
}
