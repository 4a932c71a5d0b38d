# Store paths that a program of the administrator provides, and not Nix by itself.
{ examples, pkgs, python, ... }:
let
  cache = "file:///var/cache/nix";
  # Where the daemon, and with it the builder, may write.
  calls = "/var/cache/nix-snapshotter/external-builder-calls";

  builder = pkgs.writeShellApplication {
    name = "external-builder";
    runtimeInputs = [ pkgs.nix ];
    text = ''
      echo "$1 $2" >>${calls}
      nix-store --realise "$2" --add-root "$1" --option substituters ${cache} --option require-sigs false
    '';
  };
in
{
  # What the script names is in the store by `additionalPaths`.
  includeTestScriptReferences = false;

  nodes.machine = {
    imports = [ ./common/rootful.nix ./common/own-store.nix ];
    services.nix-snapshotter.settings.external_builder = "${builder}/bin/external-builder";
    nix.settings.experimental-features = [ "nix-command" ];
    # In the store without anything that holds it.
    virtualisation.additionalPaths = [ examples.hello ];
  };

  testScript = python + ''
    machine.wait_for_unit("containerd.service")

    with subtest("the closure is in a cache alone"):
        machine.succeed("nix copy --no-check-sigs --to ${cache} ${examples.hello}")
        machine.succeed("cp ${examples.hello} /tmp/hello.tar")
        machine.succeed("nix-collect-garbage")
        machine.fail("test -e ${pkgs.hello}")

    with subtest("the builder brings it, and its links hold it"):
        machine.succeed("nix2container load /tmp/hello.tar")
        machine.succeed("nix-collect-garbage")
        output = machine.succeed(as_root("nerdctl run --rm ${examples.hello.image}"))
        assert "Hello, world!" in output, output

    with subtest("the scenario external-builder"):
        machine.succeed("EXTERNAL_BUILDER_LOG=${calls} bash /etc/scenarios/external-builder.sh >&2")
  '';
}
