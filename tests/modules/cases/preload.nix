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
    checks.refused [ "services.preload-containerd.targets" "virtualisation.containerd.{enable,nixSnapshotterIntegration}" "services.k3s" ]
      (preload [{ archives = [ pkgs.hello ]; }] { });

  "a containerd without nix-snapshotter" =
    checks.refused [ "services.preload-containerd.targets" "nixSnapshotterIntegration" ]
      (preload [{ archives = [ pkgs.hello ]; }] { virtualisation.containerd.enable = true; });

  "a k3s without nix-snapshotter" =
    checks.refused [ "services.preload-containerd.targets" "services.k3s.snapshotter = \"nix\"" ]
      (preload [{ archives = [ pkgs.hello ]; }] { services.k3s = { enable = true; package = pkgs.k3s // { version = "1.35.4+k3s1"; }; }; });

  "an archive beside the configuration" =
    let command = toString (unit (preload [{ archives = [ ./preload.nix ]; }] containerd)).serviceConfig.ExecStart; in
    {
      "is a part of the system" = lib.hasSuffix "-preload.nix" command && lib.hasInfix " ${builtins.storeDir}/" command
        && builtins.getContext (builtins.substring 0 0 command) != { };
    };

  "names that systemd would read otherwise" =
    let
      result = preload
        [{ archives = [ "/srv/100% of it/$x.tar" ]; address = "\${XDG_RUNTIME_DIR}/c$UID.sock"; namespace = "$USER"; }]
        containerd;
    in
    checks.accepted result // {
      "are themselves, and variables are the user's" = lib.hasSuffix
        ''preload --containerd-address=%t/c%U.sock --namespace=%u --snapshotter=nix "/srv/100%% of it/$$x.tar"''
        (toString (unit result).serviceConfig.ExecStart);
    };

  "what a shell would expand, in an address" =
    checks.refused [ "services.preload-containerd.targets.[0].address is $(pwd)/c.sock" "$XDG_RUNTIME_DIR" "write out" ]
      (preload [{ archives = [ pkgs.hello ]; address = "$(pwd)/c.sock"; }] containerd);

  "a variable that systemd does not know, in a namespace" =
    checks.refused [ "services.preload-containerd.targets.[1].namespace is $NAMESPACE" ]
      (preload [{ archives = [ pkgs.hello ]; } { namespace = "$NAMESPACE"; }] containerd);
}
