# One image for several platforms, out of images that buildImage makes, each for one of them.
{ lib, runCommand, writeShellScriptBin, nix-snapshotter }:

let
  copy = import ./image-copy.nix { inherit lib writeShellScriptBin nix-snapshotter; };
in
{
  # The images, as in `map (system: self.packages.${system}.image) [ "x86_64-linux" "aarch64-linux" ]`.
  images
  # The name of the whole.
, name ? (lib.head images).name
  # Its tag.
, tag ? (lib.head images).tag
}:

let
  refuse = reason: throw "buildMultiPlatformImage cannot build ${name}: ${reason}";
  alike = lib.filter (group: lib.length group > 1) (lib.attrValues (lib.groupBy (image: image.platform) images));
  names = lib.concatMapStringsSep " and " (image: image.name);
  foreign = lib.filter (image: !(image ? platform)) images;

  image = runCommand "nix-image-${baseNameOf name}"
    {
      preferLocalBuild = true;
      passthru = {
        inherit name tag images;
        platforms = map (image: image.platform) images;
        copyToRegistry = copy.toRegistry { inherit name tag; archives = images; };
      };
    }
    (lib.concatMapStrings
      (image: ''
        mkdir -p "$out/${dirOf image.platform}"
        ln -s ${image} "$out/${image.platform}.tar"
      '')
      images);
in
if images == [ ] then
  throw "buildMultiPlatformImage: `images` is empty: give one image for each platform"
else if foreign != [ ] then
  refuse "`images` has ${toString (lib.head foreign)}, which says nothing of its platform: it takes what buildImage makes"
else if alike != [ ] then
  refuse "${names (lib.head alike)} are for one platform, ${(lib.head (lib.head alike)).platform}: leave all but one out"
else
  image
