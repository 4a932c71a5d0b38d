# The closure-info of a store path that refers to n others, each a small directory of its own, for what depends on the
# size of a closure.
{ n
, graph ? null # As for ./default.nix.
}:
let
  source = if graph == null then import ./nixpkgs.nix else import ./debian.nix { inherit graph; };
  name = number: "many-${toString number}";
  numbers = builtins.genList (number: number) n;

  # One build makes the directories and evaluation copies each to the store: n builds would take a second for fifty.
  directories = derivation {
    name = "many-directories";
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [
      "-c"
      ''
        mkdir $out
        number=0
        while [ $number -lt $n ]; do
          mkdir $out/many-$number
          echo $number > $out/many-$number/number
          number=$((number + 1))
        done
      ''
    ];
    PATH = "/usr/bin";
    inherit n;
  };
  copies = map (number: builtins.path { path = "${directories}/${name number}"; name = name number; }) numbers;
  many = builtins.toFile "many" (builtins.concatStringsSep "\n" copies);
in
source.closureInfo many
