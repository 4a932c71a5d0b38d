# What containerd calls for the mounts that the daemon tells it, and the daemon looks for when it starts.
{ lib, pkgs }:
cfg:
lib.optionals (cfg.settings.overlay == "fuse-overlayfs") [ pkgs.fuse-overlayfs pkgs.fuse3 ]
