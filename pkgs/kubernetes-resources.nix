# A pod whose image is a store path, and a service for it: redis, on port 30000 of the host.
{ pkgs }:

let
  image = pkgs.nix-snapshotter.buildImage {
    name = "redis";
    resolvedByNix = true;
    config.entrypoint = [ "${pkgs.redis}/bin/redis-server" ];
  };

  labels = {
    name = "redis";
    "app.kubernetes.io/name" = "redis";
  };
  port = 6379;
in
{
  redisPod = {
    apiVersion = "v1";
    kind = "Pod";
    metadata = { name = "redis"; inherit labels; };
    spec.containers = [
      {
        name = "redis";
        image = image.image;
        # Without it, redis answers nobody from outside of its pod.
        args = [ "--protected-mode" "no" ];
        ports = [{ name = "client"; containerPort = port; }];
        readinessProbe.tcpSocket = { inherit port; };
      }
    ];
  };

  redisService = {
    apiVersion = "v1";
    kind = "Service";
    metadata.name = "redis-service";
    spec = {
      # Rootless k3s binds the ports of this type of service alone on the host.
      type = "LoadBalancer";
      selector = labels;
      ports = [{ name = "client"; port = 30000; targetPort = port; }];
    };
  };
}
