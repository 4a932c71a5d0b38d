import shlex


# A command as the user who runs the daemons of a machine would type it, with the environment of a login.
def as_root(command: str) -> str:
    return f"bash --login -c {shlex.quote(command)}"


def as_alice(command: str) -> str:
    return f"sudo --user=alice XDG_RUNTIME_DIR=/run/user/1000 {as_root(command)}"


# For each of them, how to run a command, the manager of the services, and the user as scenarios call them.
ROOT = (as_root, "systemctl", "")
ALICE = (as_alice, "systemctl --user", "alice")
