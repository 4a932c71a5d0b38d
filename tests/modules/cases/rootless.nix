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
  containerdWith = settings: nixos { imports = [ containerd ]; virtualisation.containerd.rootless = settings; };
  at = address: nixos { imports = [ containerd ]; services.nix-snapshotter.rootless.settings = { inherit address; }; };
  # A path of the store is no pattern.
  hasPath = path: lib.hasInfix (builtins.unsafeDiscardStringContext path);
  containerdFile = import ../../../modules/common/containerd/config-file.nix { inherit lib pkgs; };
  namespaces = import ../../../modules/common/containerd/namespaces.nix { inherit lib pkgs; };
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
    ]
      (daemon result)
    // lib.mergeAttrsList (map (name: checks.lines [ "ConditionUser=!@system" ] result.userUnits."${name}.service") names)
    // {
      "no service of the system" = !(result.units ? "nix-snapshotter.service") && !(result.units ? "containerd.service");
      "its root is the same path inside and outside" = lib.hasInfix "--root %h/.local/share/nix-snapshotter" (daemon result);
      "it enters the namespaces" = lib.hasInfix "/bin/containerd-nsenter " (daemon result);
      "containerd comes after it" = lib.hasInfix "After=containerd-namespaces.service nix-snapshotter.service"
        result.userUnits."containerd.service";
      "variables are for users" = lib.hasInfix ''if [ "$(id -u)" != 0 ]'' result.config.environment.extraInit;
      "which a shell expands" = lib.hasInfix ''export CONTAINERD_ADDRESS="$XDG_RUNTIME_DIR/containerd/containerd.sock"''
        result.config.environment.extraInit;
      "clients find the daemon" =
        lib.hasInfix ''export NIX_SNAPSHOTTER_ADDRESS="$XDG_RUNTIME_DIR/nix-snapshotter/nix-snapshotter.sock"''
          result.config.environment.extraInit
        && lib.hasInfix ''export NIX_SNAPSHOTTER_CONFIG="/etc/nix-snapshotter/rootless.toml"'' result.config.environment.extraInit
        && lib.hasInfix ''export NIX_SNAPSHOTTER_ROOT="$HOME/.local/share/nix-snapshotter"'' result.config.environment.extraInit;
      "whose file is there, and containerd's" = lib.all (name: result.config.environment.etc ? "nix-snapshotter/${name}")
        [ "rootless.toml" "rootless-containerd.toml" ];
      "users have the programs" = lib.all (package: lib.elem package result.config.environment.systemPackages) [
        result.config.services.nix-snapshotter.rootless.package
        result.config.virtualisation.containerd.rootless.package
        result.config.virtualisation.containerd.rootless.nsenter
      ];
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
      # A list since 26.05.
      "the same command" = lib.toList services.nix-snapshotter.Service.ExecStart
      == lib.toList (nixos containerd).config.systemd.user.services.nix-snapshotter.serviceConfig.ExecStart;
      "the same PATH" = lib.all
        (package: lib.any (hasPath "${package}/bin") services.nix-snapshotter.Service.Environment)
        [ pkgs.nix pkgs.coreutils pkgs.findutils pkgs.gnugrep pkgs.gnused pkgs.systemd ];
      "the user has the programs" = lib.all (package: lib.elem package result.config.home.packages) [
        result.config.services.nix-snapshotter.rootless.package
        result.config.virtualisation.containerd.rootless.package
        result.config.virtualisation.containerd.rootless.nsenter
      ];
      "their file is there" = result.config.xdg.configFile ? "nix-snapshotter/rootless.toml"
      && lib.hasInfix ''NIX_SNAPSHOTTER_CONFIG="/home/alice/.config/nix-snapshotter/rootless.toml"''
        result.config.home.sessionVariablesExtra;
      # runc asks the user's systemd for control groups by busctl.
      "and that of containerd" = lib.any (lib.hasSuffix ":${pkgs.systemd}/bin\"") services.containerd.Service.Environment;
      "it is wanted" = services.nix-snapshotter.Install.WantedBy == [ "default.target" ];
      "variables" = lib.hasInfix "CONTAINERD_SNAPSHOTTER" result.config.home.sessionVariablesExtra;
    };

  "a rebuild does not end containers" =
    let
      unit = (nixos containerd).userUnits."containerd-namespaces.service";
      service = lib.last (lib.splitString "[Service]\n" unit);
    in
    # switch-to-configuration reads it in this section alone.
    checks.lines [ "X-RestartIfChanged=false" ] service
    // {
      "the daemons are restarted all the same" =
        !(lib.hasInfix "X-RestartIfChanged" (daemon (nixos containerd)));
    };

  "switching the home of Home Manager does not end containers" = {
    "its manager leaves the unit alone" =
      (evaluate.homeManager containerd).userServices.containerd-namespaces.Unit.X-SwitchMethod == "keep-old";
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

  "options of the system's services, with Home Manager" =
    checks.refused [ "virtualisation.containerd.nixSnapshotterIntegration" "virtualisation.containerd.rootless.nixSnapshotterIntegration" ]
      (evaluate.homeManager {
        imports = [ containerd ];
        virtualisation.containerd.nixSnapshotterIntegration = true;
      });

  "k3s as a service of the system, with Home Manager" =
    checks.refused [ "services.k3s.setKubeConfig" "services.k3s.rootless.setKubeConfig" ]
      (evaluate.homeManager { services.k3s.setKubeConfig = true; });

  "images for the system, with Home Manager" =
    checks.refused [ "services.preload-containerd.targets" "services.preload-containerd.rootless.targets" ]
      (evaluate.homeManager { services.preload-containerd.targets = [ ]; });

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

  "one root for the system and for users" =
    checks.refused [ "services.nix-snapshotter.settings.root is /data/snapshots/system" "but /data/snapshots/ is" ]
      (nixos {
        imports = [ containerd ];
        services.nix-snapshotter = {
          enable = true;
          settings.root = "/data/snapshots/system";
          rootless.settings.root = "/data/snapshots/";
        };
      });

  "a file of one's own" =
    let
      result = nixos {
        imports = [ containerd ];
        services.nix-snapshotter.rootless = {
          configFile = "/etc/nix-snapshotter/rootless.toml";
          settings.root = "/home/alice/snapshots";
        };
      };
    in
    checks.accepted result // {
      "with the root that settings have" =
        lib.hasInfix "--config /etc/nix-snapshotter/rootless.toml --root /home/alice/snapshots\n" (daemon result);
    };

  "a file of one's own, and its root" =
    let
      result = nixos {
        imports = [ containerd ];
        services.nix-snapshotter.rootless.configFile = "/etc/nix-snapshotter/rootless.toml";
      };
    in
    checks.warned [ "services.nix-snapshotter.rootless.configFile" "settings.root" ] result // {
      "nothing overrides it" = lib.hasInfix "--config /etc/nix-snapshotter/rootless.toml\n" (daemon result);
    };

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

  "mounts within one another" =
    let
      result = containerdWith {
        bindMounts = {
          "$HOME/a".mountPoint = "/var/lib/containerd/a";
          "$HOME/b".mountPoint = "$HOME/c";
        };
      };
      inherit ((namespaces { inherit (result.config.virtualisation.containerd.rootless) bindMounts; }).child) text;
    in
    {
      "the inner one comes later" = lib.hasInfix
        "show \"$XDG_DATA_HOME/containerd\" \"/var/lib/containerd\"\nshow \"$HOME/a\" \"/var/lib/containerd/a\"\n"
        text;
      "a shell expands both sides" = lib.hasInfix "show \"$HOME/b\" \"$HOME/c\"\n" text;
    };

  "two mounts at one place" =
    checks.refused [ "bindMounts has $HOME/a and $HOME/b at /srv" "hide" ]
      (containerdWith { bindMounts = { "$HOME/a".mountPoint = "/srv"; "$HOME/b".mountPoint = "/srv"; }; });

  "a socket in /run itself" =
    checks.refused [ "services.nix-snapshotter.rootless.settings.address is /run/nix.sock" "directory of its own below /run" ]
      (at "/run/nix.sock");

  "a socket in the user's runtime directory" =
    checks.refused [ "settings.address is /run/user/1000/nix.sock" "directory of its own below /run" ]
      (at "/run/user/1000/nix.sock");

  "a socket outside of /run" =
    checks.refused [ "settings.address is /tmp/nix.sock" "directory of its own below /run" ] (at "/tmp/nix.sock");

  "a socket beside those of containerd" =
    checks.refused [ "settings.address is /run/containerd/nix.sock" "directory of its own below /run" ]
      (at "/run/containerd/nix.sock");

  "a socket in another directory" =
    let result = at "/run/store/nix.sock"; in
    checks.accepted result // {
      "which is the user's" =
        result.config.virtualisation.containerd.rootless.bindMounts."$XDG_RUNTIME_DIR/nix-snapshotter".mountPoint == "/run/store";
      "and outside it is where it was" =
        lib.hasInfix ''export NIX_SNAPSHOTTER_ADDRESS="$XDG_RUNTIME_DIR/nix-snapshotter/nix.sock"'' result.config.environment.extraInit;
    };

  "flags of containerd with variables" =
    let
      result = containerdWith { args = { state = "$XDG_RUNTIME_DIR/state"; label = "100% of $USER"; }; };
      command = result.config.systemd.user.services.containerd.serviceConfig.ExecStart;
    in
    checks.accepted result // {
      "they are the user's" = lib.hasSuffix ''"--label=100%% of %u" --state=%t/state'' command;
      "the file is a part of the system" = lib.any (lib.hasSuffix "containerd.toml-0.drv") (lib.attrNames (builtins.getContext command));
    };

  "flags of containerd that a shell would expand" =
    checks.refused [ "virtualisation.containerd.rootless.args.state is `mktemp -d`" "no shell reads it" ]
      (containerdWith { args.state = "`mktemp -d`"; });

  "version 3 of containerd's file" =
    let
      result = containerdWith { settings = { version = 3; plugins."io.containerd.cri.v1.images".max_concurrent_downloads = 5; }; };
      inherit (containerdFile { inherit (result.config.virtualisation.containerd.rootless) package settings; }) settings;
    in
    checks.accepted result // {
      "has what the integration adds" = settings.plugins."io.containerd.cri.v1.images" == {
        snapshotter = "nix";
        disable_snapshot_annotations = false;
        max_concurrent_downloads = 5;
      };
      "where version 3 has it" = settings.version == 3 && !(settings.plugins ? "io.containerd.grpc.v1.cri");
    };

  "version 3 of containerd's file, with containerd 1.7" =
    checks.refused [ "rootless.settings.version is 3" "containerd 1.7.27" "Leave it out" ]
      (containerdWith { package = pkgs.containerd // { version = "1.7.27"; }; settings.version = 3; });

  "an old containerd" =
    checks.refused [ "virtualisation.containerd.rootless.nixSnapshotterIntegration" "containerd is 1.6.20" ]
      (containerdWith { package = pkgs.containerd // { version = "1.6.20"; }; });

  "another file for containerd" =
    checks.refused [ "rootless.nixSnapshotterIntegration has no effect" "rootless.args.config" "/etc/containerd/config.toml" ]
      (containerdWith { args.config = "/etc/containerd/config.toml"; });

  "the builder in the wrong place" =
    checks.refused [ "rootless.settings.external_builder is no key of containerd" "services.nix-snapshotter.rootless.settings.external_builder" ]
      (containerdWith { settings.external_builder = "/bin/builder"; });

  "machines on which users mount no overlays" =
    let
      result = nixos {
        imports = [ containerd ];
        services.nix-snapshotter.rootless.settings.overlay = "fuse-overlayfs";
      };
    in
    checks.accepted result // {
      "containerd's transfer service does not wait for its own snapshotter" = map (entry: entry.snapshotter)
        result.config.virtualisation.containerd.rootless.settings.plugins."io.containerd.transfer.v1.local".unpack_config
      == [ "nix" ];
    };

  "settings of one's own" =
    let result = containerdWith { settings.plugins."io.containerd.grpc.v1.cri".restrict_oom_score_adj = false; }; in
    checks.accepted result // {
      "win" =
        !result.config.virtualisation.containerd.rootless.settings.plugins."io.containerd.grpc.v1.cri".restrict_oom_score_adj;
    };

  "a setting that containerd 2 does not have any more" =
    checks.warned [ "virtualisation.containerd.rootless.settings has disable_cgroup" "containerd 2.2.0" "Remove it" ]
      (containerdWith {
        package = pkgs.containerd // { version = "2.2.0"; };
        settings.plugins."io.containerd.grpc.v1.cri".disable_cgroup = false;
      });

  "that setting, with containerd 1.7" =
    checks.accepted (containerdWith {
      package = pkgs.containerd // { version = "1.7.27"; };
      settings.plugins."io.containerd.grpc.v1.cri".disable_cgroup = false;
    });

  "a program of one's own that enters the namespaces" =
    let result = containerdWith { nsenter = pkgs.writeShellScriptBin "containerd-nsenter" ""; }; in
    checks.accepted result // {
      "both daemons call it" = lib.all
        (unit: hasPath "${result.config.virtualisation.containerd.rootless.nsenter}/bin/containerd-nsenter" result.userUnits.${unit})
        [ "containerd.service" "nix-snapshotter.service" ];
    };

  "gVisor as the default only" =
    checks.warned [ "rootless.defaultRuntime is runsc" "rootless.gVisorIntegration" ]
      (containerdWith { defaultRuntime = "runsc"; });

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
    checks.accepted result // checks.lines [ "ConditionUser=!@system" ] unit // {
      "its snapshotter" = lib.hasInfix "--snapshotter=nix-snapshotter" unit;
      "kubelet asks the daemon" =
        lib.hasInfix "--image-service-endpoint=unix:///run/k3s/containerd/nix-snapshotter/nix-snapshotter.sock" unit;
      "its own snapshotter is told of nothing" = lib.length (lib.splitString "--snapshotter=" unit) == 2;
      "k3s is configured before it starts" = lib.hasInfix "/bin/k3s-configure-containerd %h/.rancher/k3s/agent/etc/containerd /" unit;
      "subordinate ids are looked at before that" = lib.hasInfix "/bin/check-subordinate-ids\n" unit;
      "users have the programs" = lib.all (package: lib.elem package result.config.environment.systemPackages)
        [ result.config.services.k3s.rootless.package result.config.services.k3s.rootless.nsenter ];
      "the daemon comes back with it" = lib.hasInfix "Wants=nix-snapshotter.service" unit;
      "clients find the daemon" = lib.hasInfix
        ''export NIX_SNAPSHOTTER_ADDRESS="$XDG_RUNTIME_DIR/k3s/containerd/nix-snapshotter/nix-snapshotter.sock"''
        result.config.environment.extraInit;
      "the daemon enters its namespaces" = lib.hasInfix "/bin/k3s-nsenter " (daemon result);
      "and goes with it" = lib.hasInfix "BindsTo=k3s.service" (daemon result);
      "a stop reaches it there" = lib.hasInfix "/bin/k3s-nsenter-end\n" (daemon result);
      "KUBECONFIG" = lib.hasInfix ''export KUBECONFIG="$HOME/.kube/k3s.yaml"'' result.config.environment.extraInit;
    };

  "k3s with a snapshotter of its own" =
    let
      result = nixos { services.k3s.rootless = { enable = true; package = pkgs.k3s // { version = "1.35.4+k3s1"; }; }; };
      unit = result.userUnits."k3s.service";
    in
    checks.accepted result // {
      "no flag for its default" = !(lib.hasInfix "--snapshotter" unit);
      "what an earlier configuration has put there goes" =
        lib.hasInfix "/bin/k3s-configure-containerd %h/.rancher/k3s/agent/etc/containerd\n" unit;
    };

  "k3s with the name of its own snapshotter" =
    checks.refused [ "services.nix-snapshotter.rootless.snapshotterName is nix" "built in" ]
      (nixos { imports = [ k3s ]; services.nix-snapshotter.rootless.snapshotterName = "nix"; });

  "k3s with containerd 1.7" =
    let
      result = nixos {
        imports = [ k3s ];
        services.k3s.rootless.package = lib.mkForce (pkgs.k3s // { version = "1.31.5+k3s1"; });
      };
    in
    checks.refused [ "services.k3s.rootless.snapshotter" "1.31.5" "Choose a newer package." ] result;

  "k3s with Home Manager" =
    let result = evaluate.homeManager k3s; in
    checks.accepted result // {
      "it is there" = result.userServices ? k3s && result.userServices ? nix-snapshotter;
      "subordinate ids are looked at" = lib.any (lib.hasSuffix "/bin/check-subordinate-ids") result.userServices.k3s.Service.ExecStartPre;
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
    checks.accepted result // checks.lines [ "ConditionUser=!@system" ] unit // {
      "systemd expands the address" = lib.hasInfix "--containerd-address=%t/containerd/containerd.sock" unit;
      "after both daemons" = lib.hasInfix "After=containerd.service nix-snapshotter.service" unit;
    };
}
