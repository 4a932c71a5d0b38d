# Options of the system's services, which the Go project's modules for Home Manager declare too, and do nothing with.
{ lib, ... }:
let
  ofUsers = path: lib.concatStringsSep "." (lib.init path ++ [ "rootless" (lib.last path) ]);
  removed = path: lib.mkRemovedOptionModule path ''
    Home Manager has services of users only: write ${ofUsers path}.
  '';
in
{
  imports =
    map (name: removed [ "virtualisation" "containerd" name ]) [
      "defaultRuntime"
      "gVisorIntegration"
      "nixSnapshotterIntegration"
      "path"
      "setAddress"
      "setNamespace"
      "setSnapshotter"
    ]
    ++ map (name: removed [ "services" "k3s" name ]) [ "setEmbeddedContainerd" "setKubeConfig" "snapshotter" ]
    ++ map (name: removed [ "services" "preload-containerd" name ]) [ "enable" "targets" ]
    ++ [
      (lib.mkRemovedOptionModule [ "virtualisation" "containerd" "k3sIntegration" ] ''
        Home Manager has services of users only, whose k3s uses its own containerd: write services.k3s.rootless.enable.
      '')
    ];
}
