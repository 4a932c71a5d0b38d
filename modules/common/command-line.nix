# Words of a command in a unit, in which `%` and `$` mean something to systemd.
{ lib }:
let
  # systemd.service(5): a word that holds anything else is quoted, and C's escapes are read in quotes.
  quoted = text: if builtins.match "[A-Za-z0-9_./:=@,%+-]+" text != null then text else builtins.toJSON text;
  escaped = lib.replaceStrings [ "%" "$" ] [ "%%" "$$" ];

  # What systemd knows of a manager's user, by the name that a shell has for it (systemd.unit(5), "Specifiers").
  specifiers = {
    HOME = "%h";
    UID = "%U";
    USER = "%u";
    XDG_RUNTIME_DIR = "%t";
  };

  # What a text consists of: texts, and lists of the one name of a variable.
  parts = text: map
    (part: if builtins.isString part then part else [ (lib.findFirst (name: name != null) "UID" part) ])
    (builtins.split "[$]([A-Za-z_][A-Za-z0-9_]*)|[$][{]([A-Za-z_][A-Za-z0-9_]*)[}]|[$][(]id -u[)]" text);
in
{
  # A word that is itself, whatever is in it.
  word = text: quoted (escaped text);

  # A word in which variables stand for what they are to a shell.
  expand = text: quoted (lib.addContextFrom text (lib.concatMapStrings
    (part: if builtins.isString part then escaped part else specifiers.${lib.head part} or "")
    (parts text)));

  # Asserts that `expand` knows whatever a shell would expand. `option` is where the text is from.
  expands = option: text: {
    assertion = lib.all
      (part: if builtins.isString part then builtins.match ".*[$`].*" part == null else specifiers ? ${lib.head part})
      (parts text);
    message = ''
      ${option} is ${text}, and no shell reads it. systemd does, which knows ${
        lib.concatMapStringsSep ", " (name: "$" + name) (lib.attrNames specifiers)} and nothing else: write out what the
      rest stands for.
    '';
  };
}
