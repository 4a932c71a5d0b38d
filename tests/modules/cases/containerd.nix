# virtualisation.containerd
{ lib, pkgs, evaluate, checks }:
let
  containerd = more: evaluate.nixos {
    imports = [ more ];
    virtualisation.containerd.enable = true;
  };
  integrated = more: containerd {
    imports = [ more ];
    virtualisation.containerd.nixSnapshotterIntegration = true;
    services.nix-snapshotter.enable = true;
  };

  inherit (import ../../../modules/common/containerd/settings.nix { inherit lib; }) toVersion3;
  settings = result: result.config.virtualisation.containerd.settings;
  file = result: toVersion3 "2.2.0" (settings result);
  shell = result: result.config.environment.extraInit;
in
{
  "as nixpkgs has it" =
    let result = containerd { }; in
    checks.accepted result // {
      "its own file" = lib.hasInfix "containerd-config-checked.toml" result.units."containerd.service";
      "no snapshotter" = !(settings result ? proxy_plugins);
      "the address" = lib.hasInfix ''export CONTAINERD_ADDRESS="/run/containerd/containerd.sock"'' (shell result);
      "no variable for overlayfs" = !(lib.hasInfix "CONTAINERD_SNAPSHOTTER" (shell result));
    };

  "with nix-snapshotter" =
    let
      result = integrated { };
      inherit (file result) plugins proxy_plugins;
    in
    checks.accepted result // {
      "it starts after the daemon" = lib.elem "nix-snapshotter.service" result.config.systemd.services.containerd.after;
      "and with it" = lib.elem "nix-snapshotter.service" result.config.systemd.services.containerd.wants;
      "our file" = lib.hasInfix "containerd.toml" result.units."containerd.service";
      "the plugin" = proxy_plugins.nix.address == "/run/nix-snapshotter/nix-snapshotter.sock";
      "the directory that kubelet watches" =
        proxy_plugins.nix.exports.root == "/var/lib/containerd/io.containerd.snapshotter.v1.nix";
      "containers in user namespaces" = lib.elem "remap-ids" proxy_plugins.nix.capabilities;
      "the snapshotter of the CRI" = plugins."io.containerd.cri.v1.images".snapshotter == "nix";
      "layers keep their annotations" = !plugins."io.containerd.cri.v1.images".disable_snapshot_annotations;
      "the transfer service" = map (entry: entry.snapshotter) plugins."io.containerd.transfer.v1.local".unpack_config
      == [ "nix" "overlayfs" ];
      "clients" = lib.hasInfix ''export CONTAINERD_SNAPSHOTTER="nix"'' (shell result);
      "what doctor reads is what containerd reads" = toString result.config.environment.etc."containerd/config.toml".source
      == result.config.virtualisation.containerd.args.config;
      "and what the daemon reads" = lib.hasSuffix "--config ${result.config.environment.etc."nix-snapshotter/config.toml".source}"
        result.config.systemd.services.nix-snapshotter.serviceConfig.ExecStart;
    };

  "the integration without the daemon" =
    checks.refused [ "virtualisation.containerd.nixSnapshotterIntegration" "services.nix-snapshotter.enable = true" ]
      (containerd { virtualisation.containerd.nixSnapshotterIntegration = true; });

  "the integration beside a file of one's own" =
    let
      result = integrated { virtualisation.containerd.configFile = "/etc/containerd/config.toml"; };
    in
    checks.refused [ "has no effect" "virtualisation.containerd.settings" ] (result // { warnings = [ ]; });

  "the integration beside another file" =
    checks.refused [ "virtualisation.containerd.nixSnapshotterIntegration has no effect" "args.config" "/etc/containerd/mine.toml" ]
      (integrated { virtualisation.containerd.args.config = lib.mkForce "/etc/containerd/mine.toml"; });

  "the builder in the wrong place" =
    checks.refused [ "external_builder is no key of containerd" "services.nix-snapshotter.settings.external_builder" ]
      (integrated { virtualisation.containerd.settings.external_builder = "/bin/builder"; });

  "another name, another root" =
    let
      result = integrated {
        services.nix-snapshotter = {
          snapshotterName = "store";
          settings.root = "/data/store";
        };
      };
      inherit (file result) plugins proxy_plugins;
    in
    checks.accepted result // {
      "the plugin" = lib.attrNames proxy_plugins == [ "store" ];
      "its root" = proxy_plugins.store.exports.root == "/data/store";
      "the CRI" = plugins."io.containerd.cri.v1.images".snapshotter == "store";
      "clients" = lib.hasInfix ''export CONTAINERD_SNAPSHOTTER="store"'' (shell result);
    };

  "a snapshotter of one's own choice for the CRI" =
    let
      result = integrated {
        virtualisation.containerd.settings.plugins."io.containerd.grpc.v1.cri".containerd.snapshotter = "overlayfs";
      };
    in
    checks.accepted result // {
      "it wins" = (file result).plugins."io.containerd.cri.v1.images".snapshotter == "overlayfs";
    };

  "addresses that differ" =
    checks.warned [ "/run/other.sock" "virtualisation.containerd.setAddress" ]
      (integrated { virtualisation.containerd.setAddress = "/run/other.sock"; });

  "gVisor" =
    let
      result = integrated {
        virtualisation.containerd = {
          gVisorIntegration = true;
          defaultRuntime = "runsc";
        };
      };
      inherit ((file result).plugins."io.containerd.cri.v1.runtime") containerd;
    in
    checks.accepted result // {
      "the runtime" = containerd.runtimes.runsc.runtime_type == "io.containerd.runsc.v1";
      "it is the default" = containerd.default_runtime_name == "runsc";
      "runc stays" = containerd.runtimes ? runc;
      "its programs" = lib.elem pkgs.gvisor result.config.systemd.services.containerd.path;
    };

  "a setting that containerd 2 does not have any more" =
    checks.warned [ "virtualisation.containerd.settings has disable_cgroup" "Remove it" ]
      (integrated { virtualisation.containerd.settings.plugins."io.containerd.grpc.v1.cri".disable_cgroup = true; });

  "gVisor as the default only" =
    checks.warned [ "defaultRuntime is runsc" "gVisorIntegration" ]
      (containerd { virtualisation.containerd.defaultRuntime = "runsc"; });

  "gVisor as the default, and defined by oneself" =
    checks.accepted (containerd {
      virtualisation.containerd = {
        defaultRuntime = "runsc";
        settings.plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runsc.runtime_type = "io.containerd.runsc.v1";
      };
    });

  "another default in settings" =
    let
      result = containerd {
        virtualisation.containerd.settings.plugins."io.containerd.grpc.v1.cri".containerd.default_runtime_name = "kata";
      };
    in
    checks.accepted result // {
      "it wins" = (settings result).plugins."io.containerd.grpc.v1.cri".containerd.default_runtime_name == "kata";
    };

  "settings in version 3" =
    let
      result = containerd {
        virtualisation.containerd = {
          gVisorIntegration = true;
          settings.version = lib.mkForce 3;
        };
      };
      file' = (import ../../../modules/common/containerd/config-file.nix { inherit lib pkgs; } {
        package = pkgs.containerd;
        settings = settings result;
      }).settings;
    in
    checks.accepted result // {
      "our file, for nixpkgs' has the rest in version 2" = lib.hasInfix "-containerd.toml" result.units."containerd.service";
      "with all that belongs to the CRI" = file'.version == 3 && !(file'.plugins ? "io.containerd.grpc.v1.cri")
      && file'.plugins."io.containerd.cri.v1.runtime".containerd.runtimes ? runsc;
    };

  "no ids are mapped" =
    let result = integrated { services.nix-snapshotter.settings.remap_ids = false; }; in
    checks.accepted result // {
      "nothing is announced" = !((file result).proxy_plugins.nix ? capabilities);
    };

  "fuse-overlayfs, which containerd mounts" =
    let result = integrated { services.nix-snapshotter.settings.overlay = "fuse-overlayfs"; }; in
    checks.accepted result // {
      "its programs" = lib.elem pkgs.fuse-overlayfs result.config.systemd.services.containerd.path
      && lib.elem pkgs.fuse3 result.config.systemd.services.containerd.path;
    };

  "a file of version 2 as one of version 3" =
    let
      new = toVersion3 "2.2.0" {
        version = 2;
        root = "/data";
        plugins = {
          "io.containerd.grpc.v1.cri" = {
            sandbox_image = "pause:latest";
            stream_server_port = "10010";
            enable_cdi = true;
            registry.config_path = "/etc/containerd/certs.d";
            cni.bin_dir = "/opt/cni/bin";
            containerd = {
              snapshotter = "nix";
              default_runtime_name = "kata";
              runtimes.kata = {
                runtime_type = "io.containerd.kata.v2";
                sandbox_mode = "shim";
              };
            };
          };
          "io.containerd.cri.v1.images".snapshotter = "written for version 3";
          "io.containerd.internal.v1.opt".path = "/opt";
        };
      };
    in
    {
      "every key is where containerd reads it" = new == {
        version = 3;
        root = "/data";
        plugins = {
          "io.containerd.grpc.v1.cri".stream_server_port = "10010";
          "io.containerd.cri.v1.images" = {
            snapshotter = "written for version 3";
            registry.config_path = "/etc/containerd/certs.d";
            pinned_images.sandbox = "pause:latest";
          };
          "io.containerd.cri.v1.runtime" = {
            enable_cdi = true;
            cni.bin_dirs = [ "/opt/cni/bin" ];
            containerd = {
              default_runtime_name = "kata";
              runtimes.kata = {
                runtime_type = "io.containerd.kata.v2";
                sandboxer = "shim";
              };
            };
          };
          "io.containerd.internal.v1.opt".path = "/opt";
        };
      };
      "containerd 2.0 has one directory of plugins" =
        (toVersion3 "2.0.7" { plugins."io.containerd.grpc.v1.cri".cni.bin_dir = "/bin"; }).plugins."io.containerd.cri.v1.runtime".cni
        == { bin_dir = "/bin"; };
      "nothing comes of nothing" = toVersion3 "2.2.0" { version = 2; } == { version = 3; plugins = { }; };
    };

  "containerd 1.7 keeps version 2" =
    let
      inherit (import ../../../modules/common/containerd/config-file.nix { inherit lib pkgs; }
        {
          package = pkgs.containerd // { version = "1.7.27"; };
          settings = { version = 2; plugins."io.containerd.grpc.v1.cri".containerd.snapshotter = "nix"; };
        }) settings;
    in
    {
      "the version" = settings.version == 2;
      "the key" = settings.plugins."io.containerd.grpc.v1.cri".containerd.snapshotter == "nix";
    };
}
