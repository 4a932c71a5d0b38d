# What `nix run` offers beside the packages.
{ lib, writeShellScript, examples, machines, tests }:

let
  app = program: description: {
    type = "app";
    inherit program;
    meta = { inherit description; };
  };
  named = prefix: lib.mapAttrs' (name: lib.nameValuePair "${prefix}-${name}");

  # Into the containerd of the user where there is one and no other is named.
  load = image: writeShellScript "load-image" ''
    socket=''${XDG_RUNTIME_DIR-}/containerd/containerd.sock
    if [ -z "''${CONTAINERD_ADDRESS-}" ] && [ -S "$socket" ]; then
      export CONTAINERD_ADDRESS=$socket
    fi
    exec ${lib.getExe (image.copyToContainerd { })} "$@"
  '';
in
lib.mapAttrs
  (name: machine: app (lib.getExe machine.config.system.build.vm) "Boots the demo machine ${name}")
  machines
// named "test" (lib.mapAttrs
  (name: test: app "${test.driverInteractive}/bin/nixos-test-driver" "Opens the machines of the test ${name}, to work with them")
  tests)
// named "push" (lib.mapAttrs
  (_: image: app (lib.getExe (image.copyToRegistry { })) "Pushes the image ${image.name} to its registry")
  examples)
  // named "load" (lib.mapAttrs
  (_: image: app "${load image}" "Loads the image ${image.name} into containerd")
  examples)
