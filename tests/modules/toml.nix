# TOML of an attribute set, for golden files: nothing has to be built for it.
{ lib }:
let
  key = name: if builtins.match "[A-Za-z0-9_-]+" name != null then name else builtins.toJSON name;
  isTable = value: builtins.isAttrs value && !(lib.isDerivation value);

  value = it:
    if isTable it then "{ ${lib.concatStringsSep ", " (lib.mapAttrsToList (name: v: "${key name} = ${value v}") it)} }"
    else if builtins.isList it then "[${lib.concatMapStringsSep ", " value it}]"
    else if builtins.isBool it || builtins.isInt it then builtins.toJSON it
    else builtins.toJSON (toString it);

  table = path: attrs:
    let
      tables = lib.filterAttrs (_: isTable) attrs;
      own = lib.filterAttrs (_: it: !(isTable it)) attrs;
      header = lib.optionalString (path != [ ] && (own != { } || tables == { }))
        "\n[${lib.concatMapStringsSep "." key path}]\n";
    in
    header
    + lib.concatStrings (lib.mapAttrsToList (name: it: "${key name} = ${value it}\n") own)
    + lib.concatStrings (lib.mapAttrsToList (name: table (path ++ [ name ])) tables);
in
table [ ]
