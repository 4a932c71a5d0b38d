# What the tests look at containers with.
{ pkgs, ... }: {
  environment.systemPackages = [
    pkgs.nerdctl
    pkgs.redis
  ];
}
