# What the tests of k3s have in common.
{ pkgs, k8sResources }:
{
  # k3s' own images, since no registry can be reached: those of pods' sandboxes and of load balancers. What
  # `make test-nix` evaluates with has none.
  images = pkgs.lib.optional (pkgs.k3s ? airgap-images) pkgs.k3s.airgap-images;

  # The add-ons, none of which is needed.
  flags = map (name: "--disable=${name}") [ "coredns" "local-storage" "metrics-server" "traefik" ];

  machine = {
    imports = [
      (import ./redis-manifests.nix {
        pod = k8sResources.redisPod;
        service = k8sResources.redisService;
      })
    ];

    virtualisation = {
      cores = 2;
      memorySize = 3072;
      diskSize = 8192;
    };
    environment.systemPackages = [ pkgs.kubectl pkgs.redis ];
  };

  # Redis comes and goes. `run` is how the user who runs k3s types commands.
  script = run: ''
    with subtest("the node is ready"):
        machine.wait_until_succeeds(${run}("kubectl wait --for=condition=Ready node --all --timeout=10s"))
        machine.wait_until_succeeds(${run}("kubectl get serviceaccount default"))

    with subtest("the pod runs"):
        machine.succeed(${run}("kubectl apply -f /etc/kubernetes/redis/"))
        machine.wait_until_succeeds(${run}("kubectl wait --for=condition=Ready pod/redis --timeout=10s"))

    with subtest("its service answers on the host"):
        machine.wait_until_succeeds("redis-cli -p 30000 ping | grep PONG")

    with subtest("it is gone when it is deleted"):
        machine.succeed(${run}("kubectl delete -f /etc/kubernetes/redis/ --timeout=60s"))
        machine.wait_until_fails("redis-cli -p 30000 ping")
  '';
}
