# The services as systemd sees them, of the system and of a user: their order, what they say, what they load, what they
# leave.
{ examples, python, ... }:
let
  machines = import ./common/machines.nix [ examples.hello examples.redis ];
in
{
  nodes = machines;

  testScript = python + ''
    start_all()

    for machine, (run, systemctl, user) in [(rootful, ROOT), (rootless, ALICE)]:
        machine.wait_until_succeeds(run(f"{systemctl} is-active preload-containerd"))
        for name in ["ordering", "journal", "preload", "doctor", "removal"]:
            with subtest(f"{machine.name}: the scenario {name}"):
                scenario(machine, name, user)

    with subtest("the scenario rootless"):
        scenario(rootless, "rootless", "alice")
  '';
}
