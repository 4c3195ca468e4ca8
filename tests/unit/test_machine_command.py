"""Running a command of the system."""

import sys

from r1mac.machine import command
from r1mac.machine.command import CommandResult, run_command


def test_a_command_runs_in_plain_english_and_with_nothing_inherited(monkeypatch):
    """Commands get LC_ALL=C, and not SYSTEM_VERSION_COMPAT, which would make macOS lie about itself."""
    monkeypatch.setenv("SYSTEM_VERSION_COMPAT", "1")
    code = "import os, sys; print(os.environ.get('LC_ALL'), os.environ.get('SYSTEM_VERSION_COMPAT')); sys.exit(3)"
    result = run_command((sys.executable, "-c", code))

    assert result == CommandResult(returncode=3, stdout="C None\n", stderr="")


def test_a_missing_command_is_a_result():
    """A computer without ioreg has an unknown GPU, not an error."""
    result = run_command(("/no/such/ioreg",))

    assert (result.returncode, result.stdout) == (127, "")
    assert "/no/such/ioreg" in result.stderr


def test_broken_text_is_a_result():
    """Bytes that are no UTF-8 are replaced, since a name in ioreg's answer may hold any."""
    code = r"import sys; sys.stdout.buffer.write(b'\xff\x00ok')"

    assert run_command((sys.executable, "-c", code)).stdout == "�\0ok"


def test_a_hanging_command_is_a_result(monkeypatch):
    """A command that does not end is given up."""
    monkeypatch.setattr(command, "COMMAND_SECONDS", 0.2)
    result = run_command((sys.executable, "-c", "import time; time.sleep(60)"))

    assert (result.returncode, result.stdout) == (124, "")
