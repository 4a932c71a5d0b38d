# services.preload-containerd
{ lib, pkgs, evaluate, checks }:
let
  preload = targets: more: evaluate.nixos {
    imports = [ more ];
    services.preload-containerd = {
      enable = true;
      inherit targets;
    };
  };
  containerd = {
    virtualisation.containerd = {
      enable = true;
      nixSnapshotterIntegration = true;
    };
    services.nix-snapshotter.enable = true;
  };
  unit = result: result.config.systemd.services.preload-containerd;
in
{
  "images of two namespaces" =
    let
      result = preload
        [
          { archives = [ pkgs.hello pkgs.redis ]; }
          { archives = [ pkgs.hello ]; namespace = "k8s.io"; address = "/run/k3s/containerd/containerd.sock"; }
        ]
        containerd;
      commands = (unit result).serviceConfig.ExecStart;
    in
    checks.accepted result // {
      "a command for each" = builtins.length commands == 2;
      "the first" = lib.hasSuffix
        "preload --containerd-address=/run/containerd/containerd.sock --namespace=default --snapshotter=nix ${pkgs.hello} ${pkgs.redis}"
        (lib.head commands);
      "the second" = lib.hasInfix "--containerd-address=/run/k3s/containerd/containerd.sock --namespace=k8s.io" (lib.last commands);
      "after both daemons" = (unit result).after == [ "containerd.service" "nix-snapshotter.service" ];
      "it tries again" = (unit result).serviceConfig.Restart == "on-failure";
    };

  "nothing to load" =
    let result = preload [{ archives = [ ]; }] containerd; in
    checks.accepted result // {
      "no unit" = !(result.units ? "preload-containerd.service");
    };

  "the containerd of k3s" =
    let
      result = preload [{ archives = [ pkgs.hello ]; namespace = "k8s.io"; }] {
        services.k3s = {
          enable = true;
          package = pkgs.k3s // { version = "1.35.4+k3s1"; };
          snapshotter = "nix";
        };
      };
    in
    checks.accepted result // {
      "its address" = lib.hasInfix "--containerd-address=/run/k3s/containerd/containerd.sock"
        (toString (unit result).serviceConfig.ExecStart);
      "its snapshotter" = lib.hasInfix "--snapshotter=nix-snapshotter" (toString (unit result).serviceConfig.ExecStart);
      "after it" = lib.elem "k3s.service" (unit result).after;
    };

  "no containerd" =
    checks.refused [ "services.preload-containerd.enable" "virtualisation.containerd.enable" "services.k3s.enable" ]
      (preload [{ archives = [ pkgs.hello ]; }] { });
}
