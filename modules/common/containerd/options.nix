# The options that containerd has as a service of the system and of a user.
{ lib, address }:
let
  inherit (lib) literalExpression mkEnableOption mkOption types;
in
{
  nixSnapshotterIntegration = mkEnableOption ''
    nix-snapshotter as containerd's snapshotter, for the CRI, for the transfer service and for clients that read
    {env}`CONTAINERD_SNAPSHOTTER`'';

  gVisorIntegration = mkEnableOption "the runtime `runsc` of gVisor";

  defaultRuntime = mkOption {
    type = types.str;
    default = "runc";
    example = "runsc";
    description = "The runtime of pods whose runtime class names none.";
  };

  path = mkOption {
    type = types.listOf (types.either types.package types.path);
    default = [ ];
    example = literalExpression "[ pkgs.criu ]";
    description = "What containerd and its shims find on their PATH, besides what they need themselves.";
  };

  setAddress = mkOption {
    type = types.str;
    default = address;
    example = "/run/k3s/containerd/containerd.sock";
    description = "The value of {env}`CONTAINERD_ADDRESS` in login shells. A shell expands `$NAME` in it.";
  };

  setNamespace = mkOption {
    type = types.str;
    default = "default";
    example = "k8s.io";
    description = "The value of {env}`CONTAINERD_NAMESPACE` in login shells.";
  };

  setSnapshotter = mkOption {
    type = types.str;
    default = "";
    example = "nix";
    description = ''
      The value of {env}`CONTAINERD_SNAPSHOTTER` in login shells. Empty, it is not set, and clients use overlayfs.
    '';
  };
}
