# Demo machines, as NixOS modules: `nix run .#vm` and `nix run .#vm-rootless` boot them.
let
  # What both have. `user` is logged in on the console, with their name as the password.
  machine = { user, tryOut }: { modulesPath, pkgs, ... }:
    let
      resources = import ./pkgs/kubernetes-resources.nix { inherit pkgs; };
    in
    {
      # Not `virtualisation.vmVariant`: these configurations are nothing but virtual machines, and have no disk to boot from.
      imports = [ (modulesPath + "/virtualisation/qemu-vm.nix") ];

      networking.hostName = "nix-snapshotter";
      system.stateVersion = "26.05";

      virtualisation = {
        memorySize = 4096;
        cores = 4;
        graphics = false;
        # All that is written is in memory, and gone afterwards.
        diskImage = null;
      };

      users.users.${user}.password = user;
      services.getty.autologinUser = user;
      users.motd = ''

        Containers straight from a Nix store. Try:

        ${tryOut}
            kubectl apply -f /etc/kubernetes/redis/
            kubectl get pods --watch
            redis-cli -p 30000 ping

        Kubernetes takes a minute to start. Ctrl-a x ends this machine.

      '';

      environment.etc."kubernetes/redis/pod.json".text = builtins.toJSON resources.redisPod;
      environment.etc."kubernetes/redis/service.json".text = builtins.toJSON resources.redisService;

      environment.systemPackages = [
        pkgs.containerd
        pkgs.cri-tools
        pkgs.jq
        pkgs.kubectl
        pkgs.nerdctl
        pkgs.nix-snapshotter
        pkgs.redis
      ];

      nix.settings.experimental-features = [ "nix-command" "flakes" ];
    };

  # Not needed here, and more than the memory holds.
  withoutAddOns = map (name: "--disable=${name}") [ "local-storage" "metrics-server" "traefik" ];

  preloaded = pkgs: builtins.attrValues (import ./pkgs/examples.nix { inherit pkgs; });
in
{
  # k3s with a containerd of its own, which nerdctl uses, too.
  vm = { config, pkgs, ... }: {
    imports = [
      (machine {
        user = "root";
        tryOut = "    nerdctl run ghcr.io/pdtpartners/hello";
      })
    ];

    virtualisation.containerd = {
      enable = true;
      k3sIntegration = true;
      nixSnapshotterIntegration = true;
    };
    services.nix-snapshotter.enable = true;

    services.k3s = {
      enable = true;
      setKubeConfig = true;
      moreFlags = withoutAddOns;
    };

    services.preload-containerd = {
      enable = true;
      targets = [{
        archives = preloaded pkgs;
        namespace = config.virtualisation.containerd.setNamespace;
      }];
    };

    environment.etc."crictl.yaml".text = ''
      runtime-endpoint: unix:///run/containerd/containerd.sock
      image-endpoint: unix://${config.services.nix-snapshotter.settings.address}
    '';
  };

  # k3s with its embedded containerd, all of it as an ordinary user.
  vm-rootless = { pkgs, ... }: {
    imports = [
      (machine {
        user = "rootless";
        tryOut = "    systemctl --user status k3s nix-snapshotter";
      })
    ];

    users.users.rootless = {
      isNormalUser = true;
      extraGroups = [ "wheel" ];
      # The services run from the start on, and not from the login.
      linger = true;
    };

    services.k3s.rootless = {
      enable = true;
      setEmbeddedContainerd = true;
      setKubeConfig = true;
      snapshotter = "nix";
      extraFlags = withoutAddOns;
    };

    services.preload-containerd.rootless = {
      enable = true;
      targets = [{
        archives = preloaded pkgs;
        namespace = "k8s.io";
      }];
    };
  };
}
