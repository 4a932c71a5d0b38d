# The package, and what is built with it
{ lib, pkgs, ... }:
let
  inherit (pkgs.nix-snapshotter) buildImage;
  hello = buildImage { name = "hello"; };
  # A comparison without the paths themselves, which no description may carry.
  same = one: other: one.drvPath == other.drvPath;
in
{
  "an image upon an archive beside the expression" = {
    "it is copied to the store" = lib.hasInfix "--from-image ${builtins.storeDir}/"
      (buildImage { name = "hello"; fromImage = ./packages.nix; }).buildCommand;
  };

  "an argument that is null is not given" = {
    "whichever" = same hello (buildImage {
      name = "hello";
      tag = null;
      config = null;
      fromImage = null;
      copyToRoot = null;
      copyToRootMode = null;
      baseLayout = null;
      labels = null;
      annotations = null;
      created = null;
      platform = null;
      compression = null;
      layerFormat = null;
    });
    "nor against another" = same
      (buildImage { name = "hello"; resolvedByNix = true; })
      (buildImage { name = "hello"; resolvedByNix = true; tag = null; });
  };

  "the programs that copy an image" =
    let
      load = (hello.copyToContainerd {
        address = "$XDG_RUNTIME_DIR/containerd.sock";
        namespace = "k8s.io";
        snapshotter = "nix-snapshotter";
      }).text;
      push = (hello.copyToRegistry { imageTag = "$(git rev-parse HEAD)"; }).text;
    in
    {
      "where to" = lib.hasInfix
        ''load --address "$XDG_RUNTIME_DIR/containerd.sock" --namespace "k8s.io" --snapshotter "nix-snapshotter" ''
        load;
      "a shell expands commands" = lib.hasInfix ''push --ref "hello:$(git rev-parse HEAD)" '' push;
    };

  "the apps that load an image" =
    let
      apps = import ../../../pkgs/apps.nix {
        inherit lib;
        writeShellScript = _: text: text;
        examples = { inherit hello; };
        machines = { };
        tests = { };
      };
    in
    {
      "into the user's containerd, where there is one" =
        lib.hasInfix "socket=\${XDG_RUNTIME_DIR-}/containerd/containerd.sock" apps.load-hello.program;
    };

  "a Rust that is too old" =
    let package = version: builtins.tryEval (pkgs.callPackage ../../../pkgs/nix-snapshotter.nix { rustc = { inherit version; }; }); in
    {
      "is refused" = !(package "1.90.0").success;
      "one that is not" = (package "1.91.0").success;
    };
}
