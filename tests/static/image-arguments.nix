# What buildImage says of arguments that are wrong, for lib.runTests.
{ lib
  # The names of all arguments.
, known
}:

let
  problems = import ../../pkgs/image-arguments.nix { inherit lib; } known;

  package = derivation { name = "package"; system = "x86_64-linux"; builder = "/bin/sh"; };

  # What is given beside a good name, and the beginnings of the sentences that it leads to.
  says = args: starts:
    let
      found = problems ({ name = "hello"; } // args);
      begins = lib.zipListsWith lib.hasPrefix starts found;
    in
    {
      expr = if lib.length starts == lib.length found && lib.all lib.id begins then starts else found;
      expected = starts;
    };
  isFine = args: says args [ ];
in
{
  testTheArgumentsOfTheGoProject = isFine {
    tag = "latest";
    resolvedByNix = false;
    fromImage = package;
    copyToRoot = [ package ];
    config = {
      entrypoint = [ package ];
      Cmd = [ "--protected-mode" "no" ];
      Env = null;
      ExposedPorts."6379/tcp" = { };
    };
  };
  testAllArguments = isFine {
    copyToRoot = package;
    copyToRootMode = "copy";
    baseLayout = true;
    labels.a = "b";
    annotations."org.example.key" = "value";
    created = 0;
    platform = "linux/arm/v7";
    compression = "zstd";
    layerFormat = "per-path";
  };
  testRegistryWithPort = isFine { name = "registry.example.org:5000/a/b_c/d__e-f.g"; };

  testUnknown = says { tags = [ ]; } [ "`tags` is no argument: there are `annotations`, `baseLayout`, " ];
  testUnknownOfDockerTools = says { contents = [ ]; } [ "`contents` is no argument: `copyToRoot` takes its place" ];
  testUnknownOfConfig = says { entrypoint = [ ]; } [ "`entrypoint` is no argument: write `config.entrypoint = …`" ];

  testNoName = {
    expr = map (lib.hasPrefix "`name` is missing") (problems { });
    expected = [ true ];
  };
  testUpperCase = says { name = "ghcr.io/Ann/hello"; } [
    ''`name` is "ghcr.io/Ann/hello", and names of images have no upper-case letters: write "ghcr.io/ann/hello"''
  ];
  testNameWithTag = says { name = "redis:7"; } [
    ''`name` is "redis:7", a name with a tag: write `name = "redis"; tag = "7";`''
  ];
  testNoImageName = says { name = "hello//world"; } [ ''`name` is "hello//world": names have'' ];
  testNameOfOtherType = says { name = 1; } [ "`name` is an int: it is a string" ];
  testBadTag = says { tag = "1+2"; } [ ''`tag` is "1+2": tags have'' ];
  testTagOfStorePath = says { resolvedByNix = true; tag = "1"; } [ "`tag` and `resolvedByNix` are both given" ];

  testStreamedBase = says { fromImage = package // { isExe = true; }; } [ "`fromImage` is a program that prints" ];
  testBaseOfOtherType = says { fromImage = { }; } [ "`fromImage` is a set: it is an archive" ];
  testTreeOutsideOfTheStore = says { copyToRoot = [ "/etc" package ]; } [ ''`copyToRoot` has "/etc": it takes'' ];
  testPartOfATree = says { copyToRoot = "${package}/bin"; } [ "`copyToRoot` has " ];
  testTreeOfOtherType = says { copyToRoot = { }; } [ "`copyToRoot` has a set: it takes" ];

  testUnknownKey = says { config.Entrypiont = [ ]; } [ "`config.Entrypiont` is unknown to the OCI image spec: there are " ];
  testKeyOfOtherType = says { config.env.A = "b"; } [
    "`config.env` is a set and has to be a list: write `config.env = [ \"NAME=value\" ]`"
  ];
  testKeyTwice = says { config = { cmd = [ ]; Cmd = [ ]; }; } [ "`config` has `Cmd`, `cmd`, which are one key" ];
  testConfigOfOtherType = says { config = [ ]; } [ "`config` is a list: write" ];

  testBool = says { baseLayout = "yes"; } [ ''`baseLayout` is "yes": it is true or false'' ];
  testOneOf = says { compression = "xz"; } [ ''`compression` is "xz": it is one of "gzip", "zstd", "none"'' ];
  testStrings = says { labels.a = 1; } [ "`labels` is no set of strings: write" ];
  testPlatform = says { platform = "x86_64-linux"; } [ ''`platform` is "x86_64-linux": it is'' ];
  testCreated = says { created = true; } [ "`created` is true: it is a time" ];

  testSeveral = says { compression = "xz"; name = "A"; } [ "`name` is " "`compression` is " ];
}
