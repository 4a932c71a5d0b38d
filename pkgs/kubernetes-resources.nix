# A pod whose image is a store path, and a service for it: redis, on port 30000 of the host.
{ pkgs }:

let
  redis = pkgs.nix-snapshotter.buildImage {
    name = "redis";
    resolvedByNix = true;
    config.entrypoint = [ "${pkgs.redis}/bin/redis-server" ];
  };
in
{
  redisPod = {
    apiVersion = "v1";
    kind = "Pod";
    metadata = {
      name = "redis";
      labels.name = "redis";
    };
    spec.containers = [{
      inherit (redis) name image;
      # Without it, redis answers nobody from outside of its pod.
      args = [ "--protected-mode" "no" ];
      ports = [{
        name = "client";
        containerPort = 6379;
      }];
    }];
  };

  redisService = {
    apiVersion = "v1";
    kind = "Service";
    metadata.name = "redis-service";
    spec = {
      # Rootless k3s binds the ports of this type of service alone on the host.
      type = "LoadBalancer";
      selector.name = "redis";
      ports = [{
        name = "client";
        port = 30000;
        targetPort = 6379;
      }];
    };
  };
}
