# The reference of all options, docs/configuration.md, from their declarations: its `text`, the `examples` in it that are
# Nix, by the names of the options, and the names of options without an example.
{ lib, pkgs }:
let
  # Options are collected without those of nixpkgs: what their modules declare is not evaluated.
  evaluated = modules: lib.evalModules {
    modules = modules ++ [{
      _module.check = false;
      _module.args = { inherit pkgs; };
    }];
  };

  documented = modules: lib.filter
    (option: option.visible && !option.internal && lib.hasPrefix (toString ./.) (lib.head option.declarations))
    (lib.optionAttrSetToDocList (evaluated modules).options);

  # Roles such as {file} are of the manual of NixOS.
  plain = text: lib.concatMapStrings (part: if builtins.isString part then part else "`")
    (builtins.split "[{](env|file|command|option|manpage)[}]`" text);

  indented = text: lib.concatMapStringsSep "\n" (line: lib.optionalString (line != "") "  ${line}")
    (lib.splitString "\n" (lib.trim text));

  shown = label: it: lib.optionalString (it != null) (
    if lib.hasInfix "\n" (lib.trim it.text)
    then "\n- ${label}:\n\n  ```nix\n${indented it.text}\n  ```"
    else "\n- ${label}: `${lib.trim it.text}`"
  );

  section = option: ''
    ### `${option.name}`

    ${lib.trim (plain option.description)}

    - Type: ${option.type}${shown "Default" (option.default or null)}${shown "Example" (option.example or null)}
  '';

  within = prefix: lib.filter (option: lib.hasPrefix prefix option.name);
  isRootless = option: lib.hasInfix ".rootless." option.name;

  nixos = documented (lib.attrValues (import ./default.nix).nixos);
  chapter = title: text: options: ''
    ## ${title}

    ${text}

    ${lib.concatMapStringsSep "\n" section (lib.sort (a: b: a.name < b.name) options)}'';
  rootful = prefix: within prefix (lib.filter (option: !isRootless option) nixos);
  rootless = prefix: within prefix (lib.filter isRootless nixos);
in
{
  # Those that do not show what a value looks like.
  bare = map (option: option.name) (lib.filter (option: !(option ? example)) nixos);

  examples = lib.listToAttrs (map
    (option: lib.nameValuePair option.name option.example.text)
    (lib.filter (option: option ? example.text) nixos));

  text = ''
    # Options of the modules

    <!-- Made of the options by `make docs`. -->

    Every option that the modules add to NixOS, and those of them that Home Manager has too: all with `rootless` in their names. [Installation](installation.md) has whole configurations; [the daemon](daemon.md) says more of the keys of its configuration file.

    ${lib.concatStringsSep "\n" [
      (chapter "services.nix-snapshotter" "The daemon as a service of the system." (rootful "services.nix-snapshotter."))
      (chapter "virtualisation.containerd" "What is added to the module of nixpkgs." (rootful "virtualisation.containerd."))
      (chapter "services.k3s" "What is added to the module of nixpkgs." (rootful "services.k3s."))
      (chapter "services.preload-containerd" "Images that are there before anybody asks for them."
        (rootful "services.preload-containerd."))
      (chapter "services.nix-snapshotter.rootless" "The daemon as a service of a user." (rootless "services.nix-snapshotter."))
      (chapter "virtualisation.containerd.rootless" "containerd as a service of a user." (rootless "virtualisation.containerd."))
      (chapter "services.k3s.rootless" "k3s as a service of a user." (rootless "services.k3s."))
      (chapter "services.preload-containerd.rootless" "Images for a user." (rootless "services.preload-containerd."))
    ]}'';
}
