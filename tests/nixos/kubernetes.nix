# A pod whose image is a store path, under the Kubernetes of NixOS.
{ k8sResources, lib, pkgs, ... }:
let
  manifests = import ./common/redis-manifests.nix {
    pod = k8sResources.redisPod;
    # Nobody here balances load.
    service = lib.recursiveUpdate k8sResources.redisService {
      spec = {
        type = "NodePort";
        ports = [{ name = "client"; port = 6379; nodePort = 30000; }];
      };
    };
  };
in
{
  globalTimeout = 1800;

  nodes.machine = { config, ... }: {
    imports = [ manifests ./common/rootful.nix ];

    services.kubernetes = {
      roles = [ "master" "node" ];
      masterAddress = "localhost";
      # Nothing here is looked up by name.
      addons.dns.enable = false;
    };

    environment.systemPackages = [ pkgs.kubectl ];
    environment.variables.KUBECONFIG = "/etc/${config.services.kubernetes.pki.etcClusterAdminKubeconfig}";

    virtualisation = {
      cores = 2;
      memorySize = 2048;
      diskSize = 4096;
    };
  };

  testScript = ''
    machine.wait_for_unit("kubernetes.target")
    machine.wait_until_succeeds("kubectl wait --for=condition=Ready node --all --timeout=10s")
    machine.wait_until_succeeds("kubectl get serviceaccount default")

    with subtest("the pod runs"):
        machine.succeed("kubectl apply -f /etc/kubernetes/redis/")
        machine.wait_until_succeeds("kubectl wait --for=condition=Ready pod/redis --timeout=10s")

    with subtest("its service answers"):
        machine.wait_until_succeeds("redis-cli -p 30000 ping | grep PONG")

    with subtest("it is gone when it is deleted"):
        machine.succeed("kubectl delete -f /etc/kubernetes/redis/ --timeout=60s")
        machine.wait_until_fails("redis-cli -p 30000 ping")
  '';
}
