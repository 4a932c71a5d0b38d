# The daemon `nix-snapshotter` and the CLI `nix2container`, with what is built by them.
{ lib
, stdenv
, buildPackages
, callPackage
, clippy
, makeBinaryWrapper
, nix
, pkgs
, protobuf
, runCommand
, rustPlatform
, rustc
, rustfmt
}:

let
  manifest = (lib.importTOML ../rust/Cargo.toml).workspace.package;

  programs = [ "nix-snapshotter" "nix2container" ];

  # Cross-compiled programs do not run here: what needs one while it is built takes it from the machine that builds.
  canExecute = stdenv.buildPlatform.canExecute stdenv.hostPlatform;
  forBuilding = if canExecute then package else buildPackages.callPackage ./nix-snapshotter.nix { };

  workspace = {
    inherit (manifest) version;
    src = lib.fileset.toSource {
      root = ../rust;
      fileset = lib.fileset.unions [
        ../rust/Cargo.lock
        ../rust/Cargo.toml
        ../rust/clippy.toml
        ../rust/rustfmt.toml
        ../rust/crates
      ];
    };
    cargoLock.lockFile = ../rust/Cargo.lock;
    # The crate containerd-client compiles containerd's .proto files.
    nativeBuildInputs = [ protobuf ];
  };

  # A check of the workspace that leaves nothing but its success.
  check = name: { nativeBuildInputs ? [ ], command }: rustPlatform.buildRustPackage (workspace // {
    pname = "nix-snapshotter-${name}";
    # No program comes of it that could list its dependencies.
    auditable = false;
    nativeBuildInputs = workspace.nativeBuildInputs ++ nativeBuildInputs;
    buildPhase = ''
      runHook preBuild
      ${command}
      runHook postBuild
    '';
    doCheck = false;
    installPhase = ''
      touch $out
    '';
  });

  package = rustPlatform.buildRustPackage (workspace // {
    pname = "nix-snapshotter";
    nativeBuildInputs = workspace.nativeBuildInputs ++ [ makeBinaryWrapper ];

    cargoBuildFlags = map (program: "--package=${program}") programs;
    # The crate e2e wants containerd, a Nix daemon and root: the VM tests and `make test` have them.
    cargoTestFlags = [ "--workspace" "--exclude=e2e" ];

    systemdUnit = import ./systemd-unit.nix { inherit lib pkgs; } (placeholder "out");

    postInstall = lib.optionalString canExecute ''
      for program in ${toString programs}; do
        $out/bin/$program generate $out/share
      done
    '' + ''
      install -D --mode=444 /dev/stdin $out/lib/systemd/system/nix-snapshotter.service <<<"$systemdUnit"
      # Last on the PATH: the Nix of the machine, which its daemon fits, comes first.
      for program in ${toString programs}; do
        wrapProgram $out/bin/$program --suffix PATH : ${lib.makeBinPath [ nix ]}
      done
    '';

    passthru = {
      buildImage = callPackage ./build-image.nix { nix-snapshotter = forBuilding; };
      buildMultiPlatformImage = callPackage ./multi-platform-image.nix { nix-snapshotter = forBuilding; };

      # A link to `file`, a configuration of the daemon, once the daemon has found it to be valid.
      checkConfig = file: runCommand "nix-snapshotter.toml" { nativeBuildInputs = [ forBuilding ]; } ''
        nix-snapshotter check-config ${file}
        ln -s ${file} $out
      '';

      tests = {
        rustfmt = check "rustfmt" {
          nativeBuildInputs = [ rustfmt ];
          command = "cargo fmt --all --check";
        };
        clippy = check "clippy" {
          nativeBuildInputs = [ clippy ];
          command = "cargo clippy --workspace --all-targets --offline -- --deny warnings";
        };
        rustdoc = check "rustdoc" {
          command = "RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --document-private-items --offline";
        };
      };
    };

    meta = {
      description = "Containerd snapshotter that mounts layers from a Nix store, and the builder of such images";
      license = with lib.licenses; [ asl20 mit ];
      platforms = lib.platforms.linux;
      maintainers = [ ];
      mainProgram = "nix-snapshotter";
    };
  });
in
lib.throwIf (lib.versionOlder rustc.version manifest.rust-version) ''
  nix-snapshotter needs Rust ${manifest.rust-version} or newer to be built, and this nixpkgs has ${rustc.version}. Take the
  package that its flake builds with a nixpkgs of its own, `nix-snapshotter.packages.${stdenv.hostPlatform.system}.default`: for
  the modules as services.nix-snapshotter.package and services.nix-snapshotter.rootless.package.
''
  package
