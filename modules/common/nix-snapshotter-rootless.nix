# The daemon as a service of a user, in the namespaces of that user's containerd or k3s.
{ config, lib, options, pkgs, ... }:
let
  cfg = config.services.nix-snapshotter.rootless;
  containerd = config.virtualisation.containerd.rootless;
  k3s = config.services.k3s.rootless;

  units = import ./nix-snapshotter/unit.nix { inherit lib pkgs; };
  inherit (import ./nix-snapshotter/config-file.nix { inherit lib pkgs; } cfg) file;
  checks = import ./nix-snapshotter/checks.nix { inherit lib; } {
    inherit cfg;
    inherit (options.services.nix-snapshotter.rootless.settings) definitions;
    prefix = "services.nix-snapshotter.rootless";
    # Within the namespaces it is the directory of the user's containerd, outside that of the system's.
    foreign = [ "/var/lib/containerd" ];
  };
  inK3s = k3s.enable && k3s.snapshotter == "nix";

  # The socket as it is called outside of the namespaces, and within them too.
  socket =
    if inK3s
    then "$XDG_RUNTIME_DIR" + lib.removePrefix "/run" cfg.settings.address
    else "$XDG_RUNTIME_DIR/nix-snapshotter/${baseNameOf cfg.settings.address}";
in
{
  options.services.nix-snapshotter.rootless =
    import ./nix-snapshotter/options.nix
      {
        inherit lib pkgs;
        rootless = true;
      }
    // {
      enable = lib.mkEnableOption ''
        nix-snapshotter as a service of each user, for the containerd of
        `virtualisation.containerd.rootless` or the k3s of `services.k3s.rootless`'';
    };

  config = lib.mkIf cfg.enable {
    services.nix-snapshotter.rootless.settings.image_service.snapshotter = lib.mkDefault cfg.snapshotterName;

    services.nix-snapshotter.userServices = {
      units.nix-snapshotter = units.user ({
        inherit cfg;
        configFile = file;
      } // (if inK3s then {
        namespaces = "k3s.service";
        enter = "${k3s.nsenter}/bin/k3s-nsenter";
        end = "${(import ./k3s-namespaces.nix { inherit pkgs; }).end}/bin/k3s-nsenter-end";
      } else {
        namespaces = "containerd-namespaces.service";
        enter = "${containerd.nsenter}/bin/containerd-nsenter";
      }));

      # For `nix-snapshotter status`, `nix-snapshotter doctor` and nix2container.
      packages = [ cfg.package ];
      files = lib.optionalAttrs (cfg.configFile == null) { "rootless.toml" = file; };
      variables = {
        NIX_SNAPSHOTTER_ADDRESS = socket;
        NIX_SNAPSHOTTER_CONFIG =
          if cfg.configFile != null then "${cfg.configFile}"
          else "${config.services.nix-snapshotter.userServices.directory}/rootless.toml";
        NIX_SNAPSHOTTER_ROOT =
          if cfg.settings.root != null then cfg.settings.root
          else lib.optionalString (cfg.configFile == null) "$HOME/.local/share/nix-snapshotter";
      };
    };

    assertions = checks.assertions ++ [
      {
        assertion = containerd.enable || inK3s;
        message = ''
          services.nix-snapshotter.rootless.enable is set, but there is no containerd whose namespaces it could enter. Set
          virtualisation.containerd.rootless.enable = true, or services.k3s.rootless.enable = true with
          services.k3s.rootless.snapshotter = "nix".
        '';
      }
      {
        assertion = !(containerd.enable && containerd.nixSnapshotterIntegration && inK3s);
        message = ''
          virtualisation.containerd.rootless.nixSnapshotterIntegration and services.k3s.rootless.snapshotter = "nix" are both
          set: they have namespaces of their own, and one nix-snapshotter serves in one of them. Choose one of the two.
        '';
      }
    ];
    warnings = checks.warnings ++ lib.optional (cfg.configFile != null && cfg.settings.root == null) ''
      services.nix-snapshotter.rootless.configFile is set, and services.nix-snapshotter.rootless.settings.root is not: the
      root is that of the file. The daemon's own default lies where Nix, outside of the namespaces, finds no GC roots. Set
      settings.root, which wins over the file.
    '';
  };
}
