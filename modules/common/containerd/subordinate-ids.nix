# A program that says what is missing of what a user needs to have a user namespace with more than one id. Home Manager
# cannot look after it: it is the system's.
{ pkgs }:
pkgs.writeShellApplication {
  name = "check-subordinate-ids";
  runtimeInputs = [ pkgs.coreutils pkgs.gnugrep ];
  text = ''
    user=$(id --user --name)
    for file in /etc/subuid /etc/subgid; do
      if ! grep --quiet --extended-regexp "^($user|$(id --user)):" "$file"; then
        echo "$file has no range for $user, which rootless containers need: usermod --add-subuids 100000-165535 \
    --add-subgids 100000-165535 $user, or on NixOS users.users.$user.autoSubUidGidRange = true" >&2
        exit 1
      fi
    done
    if ! PATH="$PATH:/run/wrappers/bin:/usr/bin:/bin" type -P newuidmap >/dev/null; then
      echo "newuidmap is not there: install the package uidmap or shadow of your distribution" >&2
      exit 1
    fi
  '';
}
