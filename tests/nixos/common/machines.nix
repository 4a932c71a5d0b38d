# One machine with the services of the system and one with those of a user, and in both the images of these archives.
archives:
let
  preload = {
    enable = true;
    targets = [{ inherit archives; }];
  };
in
{
  rootful = {
    imports = [ ./rootful.nix ];
    services.preload-containerd = preload;
  };

  rootless = {
    imports = [ ./rootless.nix ];
    services.preload-containerd.rootless = preload;
  };
}
