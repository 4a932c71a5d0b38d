# Images to try things with. The names are those of the Go project.
{ pkgs }:

let
  inherit (pkgs.nix-snapshotter) buildImage;
in
rec {
  hello = buildImage {
    name = "ghcr.io/pdtpartners/hello";
    config.entrypoint = [ "${pkgs.hello}/bin/hello" ];
  };

  redis = buildImage {
    name = "ghcr.io/pdtpartners/redis";
    config = {
      entrypoint = [ "${pkgs.redis}/bin/redis-server" ];
      # Without it, redis answers nobody from outside of its container.
      cmd = [ "--protected-mode" "no" ];
    };
  };

  redisWithShell = buildImage {
    name = "ghcr.io/pdtpartners/redis-shell";
    fromImage = redis;
    copyToRoot = pkgs.buildEnv {
      name = "redis-tools";
      pathsToLink = [ "/bin" ];
      paths = [
        pkgs.bashInteractive
        pkgs.coreutils
        pkgs.redis
      ];
    };
    config.entrypoint = [ "/bin/sh" ];
  };
}
