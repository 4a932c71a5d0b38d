# services.kubernetes and services.k3s
{ lib, pkgs, evaluate, checks }:
let
  k3s = more: evaluate.nixos {
    imports = [ more ];
    services.k3s = {
      enable = true;
      package = lib.mkDefault (of "1.35.4+k3s1");
    };
  };
  embedded = more: k3s {
    imports = [ more ];
    services.k3s.snapshotter = "nix";
  };
  external = more: k3s {
    imports = [ more ];
    virtualisation.containerd = {
      enable = true;
      k3sIntegration = true;
      nixSnapshotterIntegration = true;
    };
    services.nix-snapshotter.enable = true;
  };
  of = version: pkgs.k3s // { inherit version; };

  start = result: result.config.systemd.services.k3s.serviceConfig.ExecStart;
  has = result: flag: lib.hasInfix flag (start result);
  # What it is called with before k3s starts: a directory and, where nix-snapshotter is to be known there, a file.
  configured = result: builtins.tail (lib.splitString " " (lib.findFirst (lib.hasInfix "k3s-configure-containerd") ""
    (lib.toList result.config.systemd.services.k3s.serviceConfig.ExecStartPre)));
  directory = "/var/lib/rancher/k3s/agent/etc/containerd";
  inherit (import ../../../modules/common/k3s.nix { inherit lib pkgs; }) dropIn;
in
{
  "k3s by itself" =
    let result = k3s { }; in
    checks.accepted result // {
      "its own snapshotter, whatever its own configuration says" = !(has result "--snapshotter");
      "no daemon" = !(result.units ? "nix-snapshotter.service");
      "what an earlier configuration has put there goes" = configured result == [ directory ];
    };

  "k3s by itself, with flags as a text" =
    let result = k3s { services.k3s.extraFlags = "--disable=traefik --debug"; }; in
    checks.accepted result // {
      "they stay as they are" = has result "--disable=traefik --debug";
    };

  "k3s with another snapshotter of its own" =
    let result = k3s { services.k3s.snapshotter = "stargz"; }; in
    checks.accepted result // {
      "it is told" = has result "--snapshotter=stargz";
      "and nothing of nix-snapshotter" = configured result == [ directory ];
    };

  "k3s with its own containerd" =
    let result = embedded { services.k3s.setKubeConfig = true; services.k3s.setEmbeddedContainerd = true; }; in
    checks.accepted result // {
      "not the snapshotter that k3s has built in" = has result "--snapshotter=nix-snapshotter";
      "kubelet asks the daemon" = has result "--image-service-endpoint=unix:///run/nix-snapshotter/nix-snapshotter.sock";
      "which runs" = result.units ? "nix-snapshotter.service";
      "before k3s" = lib.elem "nix-snapshotter.service" result.config.systemd.services.k3s.after;
      "and asks k3s' containerd" =
        result.config.services.nix-snapshotter.settings.image_service.containerd_address == "/run/k3s/containerd/containerd.sock";
      "a drop-in file and no template" = lib.head (configured result) == directory && builtins.length (configured result) == 2;
      "KUBECONFIG" = lib.hasInfix ''export KUBECONFIG="/etc/rancher/k3s/k3s.yaml"'' result.config.environment.extraInit;
      "clients" = lib.hasInfix ''export CONTAINERD_SNAPSHOTTER="nix-snapshotter"'' result.config.environment.extraInit;
    };

  "k3s before it read drop-in files" =
    let result = embedded { services.k3s.package = of "1.33.4+k3s1"; }; in
    checks.accepted result // {
      "a template imports it" = lib.last (configured result) == "template";
    };

  "the drop-in file of k3s" =
    let
      file = dropIn { name = "store"; address = "/run/s.sock"; root = "/data"; idMappedMounts = true; };
    in
    {
      "the CRI" = file.plugins."io.containerd.cri.v1.images" == { snapshotter = "store"; disable_snapshot_annotations = false; };
      "the transfer service, for ctr pull" = map (entry: entry.snapshotter) file.plugins."io.containerd.transfer.v1.local".unpack_config
      == [ "store" "overlayfs" ];
      "pods in user namespaces" = file.proxy_plugins.store.capabilities == [ "remap-ids" "only-remap-ids" ];
      "nothing else, which k3s would write differently" = lib.attrNames file.plugins
      == [ "io.containerd.cri.v1.images" "io.containerd.transfer.v1.local" ];
    };

  "k3s with containerd 1.7" =
    checks.refused [ "services.k3s.snapshotter" "1.31.5" "k3sIntegration" ]
      (embedded { services.k3s.package = of "1.31.5+k3s1"; });

  "k3s with the name of its own snapshotter" =
    checks.refused [ "snapshotterName is nix" "built in" ]
      (embedded { services.nix-snapshotter.snapshotterName = "nix"; });

  "k3s with the daemon forbidden" =
    checks.refused [ "services.k3s.snapshotter is nix" "services.nix-snapshotter.enable is false" ]
      (embedded { services.nix-snapshotter.enable = false; });

  "k3s with another containerd" =
    let result = external { }; in
    checks.accepted result // {
      "it uses it" = has result "--container-runtime-endpoint=unix:///run/containerd/containerd.sock";
      "kubelet asks the daemon" = has result "--image-service-endpoint=unix:///run/nix-snapshotter/nix-snapshotter.sock";
      "no snapshotter of an embedded one" = !(has result "--snapshotter");
      "after it" = lib.elem "containerd.service" result.config.systemd.services.k3s.after;
      "no file for an embedded one" = configured result == [ directory ];
      "the namespace of Kubernetes" = lib.hasInfix ''export CONTAINERD_NAMESPACE="k8s.io"'' result.config.environment.extraInit;
      "the network of k3s" = result.config.virtualisation.containerd.settings.plugins."io.containerd.grpc.v1.cri".cni.conf_dir
      == "/var/lib/rancher/k3s/agent/etc/cni/net.d/";
    };

  "k3s with another containerd, whose images kubelet asks itself" =
    let result = external { services.nix-snapshotter.settings.image_service.enable = false; }; in
    checks.accepted result // {
      "no service that nobody serves" = !(has result "--image-service-endpoint");
    };

  "k3s with another containerd, and settings of one's own" =
    let
      result = external {
        virtualisation.containerd.settings.plugins."io.containerd.grpc.v1.cri" = {
          stream_server_port = "10011";
          cni.conf_dir = "/etc/cni/net.d";
          containerd.default_runtime_name = "kata";
        };
      };
      cri = result.config.virtualisation.containerd.settings.plugins."io.containerd.grpc.v1.cri";
    in
    checks.accepted result // {
      "they win" = cri.stream_server_port == "10011" && cri.cni.conf_dir == "/etc/cni/net.d"
      && cri.containerd.default_runtime_name == "kata";
    };

  "k3s with both" =
    checks.refused [ "services.k3s.snapshotter is nix" "virtualisation.containerd.k3sIntegration" "Choose one" ]
      (external { services.k3s.snapshotter = "nix"; });

  "k3s with its own, and another beside" =
    checks.refused [ "virtualisation.containerd.nixSnapshotterIntegration" "k3sIntegration = true" ]
      (embedded {
        virtualisation.containerd = {
          enable = true;
          nixSnapshotterIntegration = true;
        };
        services.nix-snapshotter.settings.image_service.containerd_address = "/run/containerd/containerd.sock";
      });

  "another containerd, whose variables are of the embedded one" =
    checks.refused [ "services.k3s.setEmbeddedContainerd" "Leave it out" ]
      (external { services.k3s.setEmbeddedContainerd = true; });

  "a containerd that does not run" =
    checks.refused [ "virtualisation.containerd.k3sIntegration" "virtualisation.containerd.enable = true" ]
      (k3s { virtualisation.containerd.k3sIntegration = true; });

  "a containerd for a k3s that is not there" =
    checks.refused [ "virtualisation.containerd.k3sIntegration" "services.k3s.enable = true" ]
      (evaluate.nixos {
        virtualisation.containerd = {
          enable = true;
          k3sIntegration = true;
        };
      });

  "flags as a list" =
    let result = embedded { services.k3s.extraFlags = [ "--disable=traefik" ]; services.k3s.moreFlags = [ "--debug" ]; }; in
    checks.accepted result // {
      "all are there" = has result "--disable=traefik" && has result "--debug" && has result "--snapshotter=nix-snapshotter";
    };

  "the rest of what starts k3s" =
    let result = embedded { systemd.services.k3s.serviceConfig.ExecStartPre = [ "/bin/true" ]; }; in
    checks.accepted result // {
      "stays" = lib.elem "/bin/true" result.config.systemd.services.k3s.serviceConfig.ExecStartPre;
    };

  "flags as a text" =
    checks.refused [ "services.k3s.extraFlags" "\"--disable=traefik\" \"--debug\"" ]
      (embedded { services.k3s.extraFlags = "--disable=traefik --debug"; });

  "services.kubernetes" =
    let
      result = evaluate.nixos {
        services.kubernetes = {
          roles = [ "master" "node" ];
          masterAddress = "localhost";
          # Before 26.05, its image is fetched from a registry.
          addons.dns.enable = false;
        };
        virtualisation.containerd = {
          enable = true;
          nixSnapshotterIntegration = true;
        };
        services.nix-snapshotter.enable = true;
      };
      file = (import ../../../modules/common/containerd/settings.nix { inherit lib; }).toVersion3 "2.2.0"
        result.config.virtualisation.containerd.settings;
    in
    checks.accepted result // {
      "kubelet asks the daemon" =
        lib.hasInfix "--image-service-endpoint=unix:///run/nix-snapshotter/nix-snapshotter.sock"
          result.units."kubelet.service";
      "after it has started" = lib.elem "nix-snapshotter.service" result.config.systemd.services.kubelet.after;
      "nixpkgs' own settings are taken over" =
        lib.hasSuffix "pause:latest" file.plugins."io.containerd.cri.v1.images".pinned_images.sandbox
        && file.plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options.SystemdCgroup;
    };
}
  // lib.optionalAttrs ((k3s { }).config.services.k3s ? containerdConfigTemplate) {
  "k3s with a template of version 2" =
    checks.refused [ "services.k3s.containerdConfigTemplate" "config-v3.toml.d" ]
      (embedded { services.k3s.containerdConfigTemplate = "{{ template \"base\" . }}"; });
}
