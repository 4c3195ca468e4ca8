"""What becomes of each way in which the script, or sudo before it, may end."""

from pathlib import Path

import pytest

from r1mac.errors import NeedsAdmin, UnsupportedMachine
from r1mac.machine.command import CommandResult
from r1mac.machine.fake import LINUX_64, FakeMachine
from r1mac.machine.generic import GenericMachine
from r1mac.machine.wired_limit import DaemonRefused, WiredLimit


def wired_limit(
    code: int = 0, stderr: str = "", *, terminal: bool = True, read: str = "0\n", read_code: int = 0, **more
):
    """Return a limit whose sudo ends as said, and the command lines that it was given."""
    given: list[tuple[str, ...]] = []

    def as_admin(argv):
        given.append(argv)
        return CommandResult(returncode=code, stdout="", stderr=stderr)

    wired = WiredLimit(
        run=lambda _: CommandResult(returncode=read_code, stdout=read),
        run_as_admin=as_admin,
        has_terminal=lambda: terminal,
        root=Path("/nowhere"),
        **more,
    )
    return wired, given


@pytest.mark.parametrize(
    ("code", "stderr", "kind", "words"),
    [
        (1, "sudo: a password is required\n", NeedsAdmin, "no terminal"),
        (1, "sudo: a terminal is required to read the password\nsudo: a password is required\n", NeedsAdmin, "no terminal"),
        (1, "Sorry, try again.\nsudo: 3 incorrect password attempts\n", NeedsAdmin, "right password"),
        (1, "sudo: 1 incorrect password attempt\n", NeedsAdmin, "right password"),
        (1, "eve is not in the sudoers file.\n", NeedsAdmin, "may not use sudo"),
        (1, "Sorry, user eve is not allowed to execute '/bin/sh' as root on mac.\n", NeedsAdmin, "may not use sudo"),
        (1, "sudo: unable to open /etc/sudoers: no\n", NeedsAdmin, "unable to open"),
        (1, "", NeedsAdmin, "sudo failed"),
        (127, "No such file", NeedsAdmin, "no sudo"),
        (124, "", NeedsAdmin, "did not come to an end"),
        (130, "", NeedsAdmin, "stopped"),
        (-2, "", NeedsAdmin, "stopped"),
        (77, "wired-limit: only root can do this\n", NeedsAdmin, "root"),
        (65, "wired-limit: 63488 MiB would leave macOS less than 4 GiB\n", UnsupportedMachine, "less than 4 GiB"),
        (69, "wired-limit: this is no Mac\n", UnsupportedMachine, "no Mac"),
        (71, "wired-limit: launchd refused the daemon: 5\nTry re-running\n", DaemonRefused, "launchd refused the daemon: 5"),
        (74, "wired-limit: it was set to 1 and is 0\n", UnsupportedMachine, "did not keep the limit"),
        (99, "wired-limit: strange {thing}\n", NeedsAdmin, "ended with 99: strange {thing}"),
    ],
)  # fmt: skip
def test_each_failure_has_its_sentence(code, stderr, kind, words):
    """Its class is the exit code, its sentence says what happened, and most have a way out."""
    wired, _ = wired_limit(code, stderr)
    with pytest.raises((NeedsAdmin, UnsupportedMachine)) as caught:
        wired.install(57344)

    assert type(caught.value) is kind
    assert words in caught.value.problem
    assert caught.value.exit_code == (9 if kind is NeedsAdmin else 8)
    assert caught.value.hint or code in {65, 69}


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda wired: wired.set(57344), ("set", "57344")),
        (lambda wired: wired.set(0), ("reset",)),
        (lambda wired: wired.install(57344), ("install", "57344")),
        (lambda wired: wired.uninstall(), ("uninstall",)),
    ],
)
@pytest.mark.parametrize("terminal", [True, False])
def test_what_sudo_is_given(action, words, terminal, tmp_path):
    """The script by its path, and without a terminal an order not to wait for a password."""
    script = tmp_path / "wired-limit"
    script.touch()
    wired, given = wired_limit(terminal=terminal, script=script)
    action(wired)

    assert given == [("/usr/bin/sudo", *(() if terminal else ("-n",)), "/bin/sh", str(script), *words)]


def test_without_the_script_sudo_is_not_started(tmp_path):
    """An r1mac that lost a file says which, before it asks for a password."""
    wired, given = wired_limit(script=tmp_path / "gone")
    with pytest.raises(NeedsAdmin, match="gone"):
        wired.set(57344)

    assert given == []


@pytest.mark.parametrize(
    ("text", "code"), [("", 1), ("sysctl: unknown oid 'iogpu.wired_limit_mb'", 1), ("many", 0), ("-1", 0), ("", 127)]
)
def test_a_macos_without_the_key(text, code):
    wired, _ = wired_limit(read=text, read_code=code)
    with pytest.raises(UnsupportedMachine, match="macOS 14"):
        wired.read()


@pytest.mark.parametrize("machine", [GenericMachine(), FakeMachine(LINUX_64)])
def test_only_a_mac_has_one(machine):
    with pytest.raises(UnsupportedMachine, match="only a Mac"):
        machine.wired_limit()
