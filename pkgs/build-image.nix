# Images of Nix closures, as archives that `nix2container build` makes. docs/build-image.md says how to use it.
{ lib
, stdenv
, closureInfo
, runCommand
, writeShellScriptBin
, writeText
, nix-snapshotter
}:

let
  copy = import ./image-copy.nix { inherit lib writeShellScriptBin nix-snapshotter; };
  problems = import ./image-arguments.nix { inherit lib; };

  # What the system of the package set is called by Go, and so by OCI.
  processors = {
    aarch64 = "arm64";
    armv6l = "arm/v6";
    armv7l = "arm/v7";
    i686 = "386";
    loongarch64 = "loong64";
    powerpc64 = "ppc64";
    powerpc64le = "ppc64le";
    riscv64 = "riscv64";
    s390x = "s390x";
    x86_64 = "amd64";
  };
  cpu = stdenv.hostPlatform.parsed.cpu.name;
  hostPlatform = "linux/${processors.${cpu} or (throw "buildImage knows no name of OCI for ${cpu}: give `platform`")}";

  build =
    {
      # The name of the image. With `resolvedByNix`, it only is a part of the store path.
      name
      # The tag.
    , tag ? "latest"
      # Whether the archive's store path names the image, as in `nix:0/nix/store/…-nix-image-hello.tar`: Nix provides
      # it on each node then, and no registry is asked.
    , resolvedByNix ? false
      # The archive of an image to build upon.
    , fromImage ? null
      # A tree, or a list of trees, whose files the image has below `/`, too.
    , copyToRoot ? null
      # What those files are in the image: "symlink" into the store, or "copy".
    , copyToRootMode ? "symlink"
      # Whether to add what is missing of /etc/passwd, /tmp and the like.
    , baseLayout ? false
      # The object `config` of the image config: entrypoint, cmd, env, …
    , config ? { }
      # Labels of the image, beside those of `config`.
    , labels ? { }
      # Annotations of the manifest.
    , annotations ? { }
      # When the image was made. `null`: as the base image, or not said.
    , created ? null
      # What the image runs on, in the names of Go.
    , platform ? hostPlatform
      # How the new layer is compressed: "gzip", "zstd" or "none".
    , compression ? "gzip"
      # How the layer names its store paths: "closure" all by one, or "per-path" each by itself, for the Go project.
    , layerFormat ? "closure"
    }:
    let
      baseName = baseNameOf name;
      trees = map (tree: "${tree}") (lib.optionals (copyToRoot != null) (lib.toList copyToRoot));

      # Its references are what the image refers to.
      configFile = writeText "config-${baseName}.json" (builtins.toJSON config);
      closure = closureInfo { rootPaths = [ configFile ] ++ trees; };
      treesFile = writeText "copy-to-root-${baseName}.json" (builtins.toJSON trees);

      option = flag: value: lib.optionals (value != null) [ flag (toString value) ];
      pairs = flag: values: lib.concatLists (lib.mapAttrsToList (key: value: [ flag "${key}=${value}" ]) values);
      arguments =
        option "--config" configFile
        ++ option "--closure" closure
        ++ option "--annotations" layerFormat
        # A path beside the expression is copied to the store.
        ++ lib.optionals (fromImage != null) [ "--from-image" "${fromImage}" ]
        ++ lib.optionals (trees != [ ]) [ "--copy-to-root" treesFile "--copy-to-root-mode" copyToRootMode ]
        ++ lib.optional baseLayout "--base-layout"
        ++ pairs "--label" labels
        ++ pairs "--annotation" annotations
        ++ option "--created" created
        ++ option "--platform" platform
        ++ option "--compression" compression
        ++ option "--store-dir" builtins.storeDir
        ++ lib.optionals (!resolvedByNix) [ "--ref" "${name}:${tag}" ];

      image = runCommand "nix-image-${baseName}.tar"
        {
          nativeBuildInputs = [ nix-snapshotter ];
          # The whole closure would be sent to another machine, for less than a second of work.
          preferLocalBuild = true;
          passthru = {
            inherit name tag platform;
            # What a pod calls the image.
            image = if resolvedByNix then "nix:0${image}" else "${name}:${tag}";
            copyToRegistry = copy.toRegistry { inherit name tag; archives = [ image ]; };
            copyToContainerd = copy.toContainerd image;
          };
        }
        ''
          nix2container build ${lib.escapeShellArgs arguments} "$out"
        '';
    in
    image;

  known = lib.attrNames (lib.functionArgs build);
  checked = args:
    let
      # `null` is as if it was not given.
      given = lib.filterAttrs (_: value: value != null) args;
      found = problems known given;
      name = if lib.isString (given.name or null) then given.name else "an image";
    in
    if found == [ ] then build given
    else throw "buildImage cannot build ${name}:${lib.concatMapStrings (problem: "\n- ${problem}") found}";
in
lib.setFunctionArgs checked (lib.functionArgs build)
