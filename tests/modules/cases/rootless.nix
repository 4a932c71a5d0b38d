# The services of users, of NixOS and of Home Manager
{ lib, pkgs, evaluate, checks }:
let
  alice = {
    users.users.alice = {
      isNormalUser = true;
      linger = true;
    };
  };
  containerd = {
    virtualisation.containerd.rootless = {
      enable = true;
      nixSnapshotterIntegration = true;
    };
    services.nix-snapshotter.rootless.enable = true;
  };
  k3s = {
    services.k3s.rootless = {
      enable = true;
      package = pkgs.k3s // { version = "1.35.4+k3s1"; };
      snapshotter = "nix";
      setKubeConfig = true;
      setEmbeddedContainerd = true;
    };
  };
  nixos = module: evaluate.nixos { imports = [ alice module ]; };

  daemon = result: result.userUnits."nix-snapshotter.service";
  names = [ "containerd" "containerd-namespaces" "nix-snapshotter" ];
in
{
  "containerd on NixOS" =
    let result = nixos containerd; in
    checks.accepted result
    // checks.lines [
      "Type=notify"
      "NotifyAccess=all"
      "BindsTo=containerd-namespaces.service"
      "Before=containerd.service"
      "Environment=\"NIX_REMOTE=daemon\""
      "ConditionUser=!root"
    ]
      (daemon result)
    // {
      "no service of the system" = !(result.units ? "nix-snapshotter.service") && !(result.units ? "containerd.service");
      "its root is the same path inside and outside" = lib.hasInfix "--root %h/.local/share/nix-snapshotter" (daemon result);
      "it enters the namespaces" = lib.hasInfix "/bin/containerd-nsenter " (daemon result);
      "containerd comes after it" = lib.hasInfix "After=containerd-namespaces.service nix-snapshotter.service"
        result.userUnits."containerd.service";
      "variables are for users" = lib.hasInfix ''if [ "$(id -u)" != 0 ]'' result.config.environment.extraInit;
      "which a shell expands" = lib.hasInfix ''export CONTAINERD_ADDRESS="$XDG_RUNTIME_DIR/containerd/containerd.sock"''
        result.config.environment.extraInit;
      "the manager of a user hands on its groups" = result.config.systemd.services."user@".serviceConfig.Delegate
      == "cpu cpuset io memory pids";
    };

  "containerd with Home Manager" =
    let
      result = evaluate.homeManager containerd;
      inherit (result.config.systemd.user) services;
    in
    checks.accepted result // {
      "the same units" = lib.intersectLists names (lib.attrNames services) == names;
      "the same command" = services.nix-snapshotter.Service.ExecStart
      == (nixos containerd).config.systemd.user.services.nix-snapshotter.serviceConfig.ExecStart;
      "its PATH" = lib.any (lib.hasPrefix "\"PATH=") services.nix-snapshotter.Service.Environment;
      "it is wanted" = services.nix-snapshotter.Install.WantedBy == [ "default.target" ];
      "variables" = lib.hasInfix "CONTAINERD_SNAPSHOTTER" result.config.home.sessionVariablesExtra;
    };

  "a rebuild does not end containers" =
    let inherit ((nixos containerd).config.systemd.user.services) containerd-namespaces; in
    {
      "nor switching the home" = containerd-namespaces.unitConfig.X-SwitchMethod == "keep-old";
    };

  "both a system's and a user's" =
    let
      result = nixos {
        imports = [ containerd ];
        virtualisation.containerd = {
          enable = true;
          nixSnapshotterIntegration = true;
        };
        services.nix-snapshotter.enable = true;
      };
    in
    checks.accepted result // {
      "two units" = result.units ? "nix-snapshotter.service" && result.userUnits ? "nix-snapshotter.service";
    };

  "the integration without the daemon" =
    checks.refused [ "rootless.nixSnapshotterIntegration" "services.nix-snapshotter.rootless.enable = true" ]
      (nixos {
        virtualisation.containerd.rootless = {
          enable = true;
          nixSnapshotterIntegration = true;
        };
      });

  "the daemon without containerd" =
    checks.refused [ "services.nix-snapshotter.rootless.enable" "virtualisation.containerd.rootless.enable = true" ]
      (nixos { services.nix-snapshotter.rootless.enable = true; });

  "the root of the system's daemon" =
    checks.refused [ "rootless.settings.root" "directory of its own" ]
      (nixos {
        imports = [ containerd ];
        services.nix-snapshotter.rootless.settings.root = "/var/lib/containerd/io.containerd.snapshotter.v1.nix";
      });

  "no subordinate ids" =
    checks.refused [ "subordinate ids" "autoSubUidGidRange = true" ]
      (evaluate.nixos {
        imports = [ containerd ];
        users.users.alice = {
          isNormalUser = true;
          autoSubUidGidRange = false;
          linger = true;
        };
      });

  "no user namespaces" =
    checks.refused [ "security.allowUserNamespaces" ]
      (nixos {
        imports = [ containerd ];
        security.allowUserNamespaces = false;
        nix.settings.sandbox = false;
      });

  "nobody lingers" =
    checks.warned [ "No user lingers" "linger = true" ]
      (evaluate.nixos {
        imports = [ containerd ];
        users.users.alice.isNormalUser = true;
      });

  "another directory, another mount" =
    let
      result = nixos {
        imports = [ containerd ];
        services.nix-snapshotter.rootless.settings.root = "/home/alice/snapshots";
        virtualisation.containerd.rootless.bindMounts."$HOME/certs".mountPoint = "/etc/containerd/certs.d";
      };
    in
    checks.accepted result // {
      "the root" = lib.hasInfix "--root /home/alice/snapshots" (daemon result);
      "the mount beside the others" = lib.attrNames result.config.virtualisation.containerd.rootless.bindMounts == [
        "$HOME/certs"
        "$XDG_CONFIG_HOME/cni"
        "$XDG_DATA_HOME/cni"
        "$XDG_DATA_HOME/containerd"
        "$XDG_RUNTIME_DIR/containerd"
        "$XDG_RUNTIME_DIR/nix-snapshotter"
      ];
    };

  "gVisor" =
    let
      result = nixos {
        imports = [ containerd ];
        virtualisation.containerd.rootless.gVisorIntegration = true;
      };
    in
    checks.accepted result // {
      "the runtime" = result.config.virtualisation.containerd.rootless.settings.plugins."io.containerd.grpc.v1.cri".containerd.runtimes
      ? runsc;
    };

  "k3s on NixOS" =
    let
      result = nixos k3s;
      unit = result.userUnits."k3s.service";
    in
    checks.accepted result // {
      "its snapshotter" = lib.hasInfix "--snapshotter=nix-snapshotter" unit;
      "kubelet asks the daemon" =
        lib.hasInfix "--image-service-endpoint=unix:///run/k3s/containerd/nix-snapshotter/nix-snapshotter.sock" unit;
      "k3s is configured before it starts" = lib.hasInfix "ExecStartPre=" unit;
      "the daemon enters its namespaces" = lib.hasInfix "/bin/k3s-nsenter " (daemon result);
      "and goes with it" = lib.hasInfix "BindsTo=k3s.service" (daemon result);
      "KUBECONFIG" = lib.hasInfix ''export KUBECONFIG="$HOME/.kube/k3s.yaml"'' result.config.environment.extraInit;
    };

  "k3s with Home Manager" =
    let result = evaluate.homeManager k3s; in
    checks.accepted result // {
      "it is there" = result.userServices ? k3s && result.userServices ? nix-snapshotter;
      "setuid programs" = lib.any (lib.hasInfix "/run/wrappers/bin:/usr/bin") result.userServices.k3s.Service.Environment;
    };

  "k3s and containerd" =
    checks.refused [ "virtualisation.containerd.rootless.nixSnapshotterIntegration" "services.k3s.rootless.snapshotter" ]
      (nixos { imports = [ containerd k3s ]; });

  "images" =
    let
      result = nixos {
        imports = [ containerd ];
        services.preload-containerd.rootless = {
          enable = true;
          targets = [{ archives = [ pkgs.hello ]; address = "$XDG_RUNTIME_DIR/containerd/containerd.sock"; }];
        };
      };
      unit = result.userUnits."preload-containerd.service";
    in
    checks.accepted result // {
      "systemd expands the address" = lib.hasInfix "--containerd-address=%t/containerd/containerd.sock" unit;
      "after both daemons" = lib.hasInfix "After=containerd.service nix-snapshotter.service" unit;
    };
}
