# What `nix run` offers beside the packages.
{ lib, examples, machines, tests }:

let
  app = program: description: {
    type = "app";
    inherit program;
    meta = { inherit description; };
  };
  named = prefix: lib.mapAttrs' (name: lib.nameValuePair "${prefix}-${name}");
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
  (_: image: app (lib.getExe (image.copyToContainerd { })) "Loads the image ${image.name} into containerd")
  examples)
