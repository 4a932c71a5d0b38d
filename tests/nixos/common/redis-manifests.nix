# The example pod and its service, where the machines of vm.nix have them.
{ pod, service }: {
  environment.etc."kubernetes/redis/pod.json".text = builtins.toJSON pod;
  environment.etc."kubernetes/redis/service.json".text = builtins.toJSON service;
}
