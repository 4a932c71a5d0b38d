# What the rootless services need of the system, which only NixOS can give.
{ config, lib, ... }:
let
  containerd = config.virtualisation.containerd.rootless;
  k3s = config.services.k3s.rootless;
  used = containerd.enable || k3s.enable;
  owner = user: user.autoSubUidGidRange || user.subUidRanges != [ ] && user.subGidRanges != [ ];
in
{
  config = lib.mkIf used {
    # So that containers of users have limits: https://rootlesscontaine.rs/getting-started/common/cgroup2/
    systemd.services."user@".serviceConfig.Delegate = lib.mkDefault "cpu cpuset io memory pids";

    # The ports of pods are forwarded.
    boot.kernel.sysctl."net.ipv4.ip_forward" = lib.mkIf k3s.enable (lib.mkDefault 1);
    # fuse-overlayfs, slirp4netns and the network of containers.
    boot.kernelModules = [ "fuse" "overlay" "tun" ];

    assertions = [
      {
        assertion = lib.any owner (lib.attrValues config.users.users);
        message = ''
          ${if containerd.enable then "virtualisation.containerd.rootless.enable" else "services.k3s.rootless.enable"} is set,
          but no user has ranges of subordinate ids, without which nobody can run rootless containers. Set
          users.users.NAME.autoSubUidGidRange = true, or isNormalUser = true, which does it.
        '';
      }
      {
        assertion = config.security.allowUserNamespaces;
        message = ''
          Rootless containers need user namespaces, and security.allowUserNamespaces is false. Set it to true.
        '';
      }
    ];

    warnings = lib.optional (!lib.any (user: user.isNormalUser && user.linger == true) (lib.attrValues config.users.users)) ''
      No user lingers: the rootless services start when their user logs in and end, with all containers, when the user logs
      out. Set users.users.NAME.linger = true to have them run always.
    '';
  };
}
