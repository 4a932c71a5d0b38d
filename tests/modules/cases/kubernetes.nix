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
  files = result: lib.attrNames (result.config.systemd.tmpfiles.settings."10-k3s-nix-snapshotter" or { });
  directory = "/var/lib/rancher/k3s/agent/etc/containerd";
in
{
  "k3s by itself" =
    let result = k3s { }; in
    checks.accepted result // {
      "its own snapshotter" = has result "--snapshotter=overlayfs";
      "no daemon" = !(result.units ? "nix-snapshotter.service");
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
      "a drop-in file and no template" = files result == [ "${directory}/config-v3.toml.d/nix-snapshotter.toml" ];
      "KUBECONFIG" = lib.hasInfix ''export KUBECONFIG="/etc/rancher/k3s/k3s.yaml"'' result.config.environment.extraInit;
      "clients" = lib.hasInfix ''export CONTAINERD_SNAPSHOTTER="nix-snapshotter"'' result.config.environment.extraInit;
    };

  "k3s before it read drop-in files" =
    let result = embedded { services.k3s.package = of "1.33.4+k3s1"; }; in
    checks.accepted result // {
      "the template imports it" = files result == [
        "${directory}/config-v3.toml.d/nix-snapshotter.toml"
        "${directory}/config-v3.toml.tmpl"
      ];
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
      "no file for an embedded one" = files result == [ ];
      "the namespace of Kubernetes" = lib.hasInfix ''export CONTAINERD_NAMESPACE="k8s.io"'' result.config.environment.extraInit;
      "the network of k3s" = result.config.virtualisation.containerd.settings.plugins."io.containerd.grpc.v1.cri".cni.conf_dir
      == "/var/lib/rancher/k3s/agent/etc/cni/net.d/";
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

  "flags as a text" =
    checks.refused [ "services.k3s.extraFlags" "\"--disable=traefik\" \"--debug\"" ]
      (embedded { services.k3s.extraFlags = "--disable=traefik --debug"; });

  "services.kubernetes" =
    let
      result = evaluate.nixos {
        services.kubernetes = {
          roles = [ "master" "node" ];
          masterAddress = "localhost";
          # Its image would be fetched from a registry.
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
        file.plugins."io.containerd.cri.v1.images".pinned_images.sandbox == "pause:latest"
        && file.plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options.SystemdCgroup;
    };
}
  // lib.optionalAttrs ((k3s { }).config.services.k3s ? containerdConfigTemplate) {
  "k3s with a template of version 2" =
    checks.refused [ "services.k3s.containerdConfigTemplate" "config-v3.toml.d" ]
      (embedded { services.k3s.containerdConfigTemplate = "{{ template \"base\" . }}"; });
}
