# What is wrong with the arguments of `buildImage`: a list of sentences, each with the argument, the reason and the way
# out. A pure function, so that its answers can be tested.
{ lib }:

# The names of the arguments that there are, and what was given.
known: args:

let
  inherit (lib)
    attrNames
    attrValues
    concatMap
    concatStringsSep
    elem
    findFirst
    head
    isAttrs
    isBool
    isDerivation
    isInt
    isPath
    isString
    last
    length
    mapAttrsToList
    optional
    toList
    toLower
    typeOf
    ;

  # The keys of the object `config` of an image config, those of the OCI image spec (config.md) and Docker's.
  configKeys = {
    ArgsEscaped = { type = "bool"; example = "true"; };
    Cmd = { type = "list"; example = ''[ "--port" "80" ]''; };
    Entrypoint = { type = "list"; example = ''[ "''${pkgs.hello}/bin/hello" ]''; };
    Env = { type = "list"; example = ''[ "NAME=value" ]''; };
    ExposedPorts = { type = "set"; example = ''{ "80/tcp" = { }; }''; };
    Healthcheck = { type = "set"; example = ''{ Test = [ "CMD" "…" ]; }''; };
    Labels = { type = "set"; example = ''{ "org.example.key" = "value"; }''; };
    Shell = { type = "list"; example = ''[ "/bin/sh" "-c" ]''; };
    StopSignal = { type = "string"; example = ''"SIGINT"''; };
    StopTimeout = { type = "int"; example = "10"; };
    User = { type = "string"; example = ''"1000:1000"''; };
    Volumes = { type = "set"; example = ''{ "/data" = { }; }''; };
    WorkingDir = { type = "string"; example = ''"/data"''; };
  };
  # The case does not count: `entrypoint` is the common spelling in Nix.
  configKey = key: findFirst (name: toLower name == toLower key) null (attrNames configKeys);

  # Arguments of dockerTools, and what is here in their place.
  elsewhere = {
    architecture = "`platform`";
    contents = "`copyToRoot`";
    extraCommands = "a derivation in `copyToRoot`";
    fakeRootCommands = "a derivation in `copyToRoot`";
    runAsRoot = "a derivation in `copyToRoot`";
  };

  # A value by its type: "an int".
  a = value: "${if isInt value then "an" else "a"} ${typeOf value}";
  show = lib.generators.toPretty { multiline = false; };
  list = names: concatStringsSep ", " (map (name: "`${name}`") names);

  unknown = map
    (name: "`${name}` is no argument: " + (
      if configKey name != null then "write `config.${name} = …`"
      else if elsewhere ? ${name} then "${elsewhere.${name}} takes its place"
      else "there are ${list known}"
    ))
    (lib.subtractLists known (attrNames args));

  # Whether an argument that is given passes a test.
  check = name: test: reason:
    optional (args ? ${name} && !test args.${name}) "`${name}` ${reason args.${name}}";
  checkBool = name: check name isBool (value: "is ${show value}: it is true or false");
  checkOneOf = name: values:
    check name (value: elem value values)
      (value: "is ${show value}: it is one of ${concatStringsSep ", " (map show values)}");
  checkStrings = name:
    check name (value: isAttrs value && lib.all isString (attrValues value))
      (_: ''is no set of strings: write `${name} = { "org.example.key" = "value"; }`'');

  # The grammar of names in the OCI distribution spec, with the port of a registry.
  component = "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*";
  isName = value: builtins.match "(${component}(:[0-9]+)?/)?${component}(/${component})*" value != null;
  nameAndTag = builtins.match "(.*):([^/:]*)" args.name;
  name =
    if !(args ? name) then
      [ ''`name` is missing: it names the image, as in `name = "ghcr.io/ann/hello"`'' ]
    else if !isString args.name then
      [ "`name` is ${a args.name}: it is a string" ]
    else if toLower args.name != args.name then
      [ "`name` is ${show args.name}, and names of images have no upper-case letters: write ${show (toLower args.name)}" ]
    else if isName args.name then
      [ ]
    else if nameAndTag != null && isName (head nameAndTag) then
      [ "`name` is ${show args.name}, a name with a tag: write `name = ${show (head nameAndTag)}; tag = ${show (last nameAndTag)};`" ]
    else
      [ "`name` is ${show args.name}: names have lower-case letters and digits, single `.`, `_` or `-` between them, and `/` between their parts" ];

  tag =
    if args ? tag && args.resolvedByNix or false == true then
      [ "`tag` and `resolvedByNix` are both given, and the store path of the image is its name then: leave `tag` out" ]
    else
      check "tag" (value: isString value && builtins.match "[A-Za-z0-9_][A-Za-z0-9._-]{0,127}" value != null)
        (value: "is ${show value}: tags have at most 128 letters, digits, `_`, `.` and `-`, and no `.` or `-` in front");

  isReadable = value: isString value || isPath value || isDerivation value;
  fromImage =
    if args.fromImage.isExe or false then
      [ "`fromImage` is a program that prints an image, made by streamLayeredImage: take buildLayeredImage, which makes an archive" ]
    else
      check "fromImage" isReadable
        (value: "is ${a value}: it is an archive, as dockerTools.pullImage and buildImage make it");

  copyToRoot = concatMap
    (tree:
      optional (!(isReadable tree && lib.isStorePath "${tree}"))
        "`copyToRoot` has ${if isString tree then show tree else a tree}: it takes derivations and store paths. For parts of these, take pkgs.buildEnv with `pathsToLink`")
    (toList (args.copyToRoot or [ ]));

  configs =
    if !isAttrs (args.config or { }) then
      [ ''`config` is ${a args.config}: write `config = { entrypoint = [ "…" ]; }`'' ]
    else
      lib.concatLists (mapAttrsToList configValue (args.config or { }))
      ++ concatMap
        (keys: optional (length keys > 1) "`config` has ${list keys}, which are one key: keep one of them")
        (attrValues (lib.groupBy toLower (attrNames (args.config or { }))));
  configValue = key: value:
    let
      wanted = configKeys.${configKey key};
    in
    if configKey key == null then
      [ "`config.${key}` is unknown to the OCI image spec: there are ${list (attrNames configKeys)}" ]
    else
      optional (value != null && typeOf value != wanted.type)
        "`config.${key}` is ${a value} and has to be a ${wanted.type}: write `config.${key} = ${wanted.example}`";
in
unknown
++ name
++ tag
++ checkBool "resolvedByNix"
++ fromImage
++ copyToRoot
++ checkOneOf "copyToRootMode" [ "symlink" "copy" ]
++ checkBool "baseLayout"
++ configs
++ checkStrings "labels"
++ checkStrings "annotations"
++ check "created" (value: isInt value || isString value)
  (value: ''is ${show value}: it is a time, as in "2026-01-31T12:00:00Z", or seconds since 1970'')
++ check "platform" (value: isString value && builtins.match "[a-z0-9]+/[a-z0-9]+(/[a-z0-9]+)?" value != null)
  (value: ''is ${show value}: it is an operating system and a processor in the names of Go, as in "linux/arm64"'')
++ checkOneOf "compression" [ "gzip" "zstd" "none" ]
++ checkOneOf "layerFormat" [ "closure" "per-path" ]
