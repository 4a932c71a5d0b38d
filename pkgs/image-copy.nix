# Programs that take an image elsewhere. What they are called with goes to nix2container, behind the options here.
{ lib, writeShellScriptBin, nix-snapshotter }:

let
  # The shell expands the value when the program runs, as in "$XDG_RUNTIME_DIR/containerd/containerd.sock" and
  # "$(git rev-parse HEAD)".
  option = flag: value: lib.optionals (value != null) [ flag "\"${value}\"" ];

  program = name: words: writeShellScriptBin name ''
    set -euo pipefail
    exec ${lib.concatStringsSep " " ([ "${nix-snapshotter}/bin/nix2container" ] ++ words)} "$@"
  '';
in
{
  # Pushes archives, which become one image when there are several, to a registry.
  toRegistry = { name, tag, archives }: { imageName ? name, imageTag ? tag, plainHTTP ? false }:
    program "copy-to-registry" (
      [ "push" ]
      ++ option "--ref" "${imageName}:${imageTag}"
      ++ lib.optional plainHTTP "--plain-http"
      ++ map (archive: "${archive}") archives
    );

  # Loads an archive into containerd. What is not given here says the environment (CONTAINERD_ADDRESS,
  # CONTAINERD_NAMESPACE, CONTAINERD_SNAPSHOTTER), or else nix2container's defaults.
  toContainerd = archive: { address ? null, namespace ? null, snapshotter ? null }:
    program "copy-to-containerd" (
      [ "load" ]
      ++ option "--address" address
      ++ option "--namespace" namespace
      ++ option "--snapshotter" snapshotter
      ++ [ "${archive}" ]
    );
}
