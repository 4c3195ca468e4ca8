"""``r1mac run`` and memory: what does not fit, who holds how much, and runs that did not end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

from r1mac.units import GIB
from tests.cli.conftest import COMMAND, UNCOMPILED
from tests.macs import Mac

HOLD = """
import sys, time
from r1mac.machine.occupancy import occupy
with occupy("R1 70B at 4 bits", planned_bytes=int(sys.argv[1]), budget_bytes=10**15, wired_limit_bytes=10**15):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture(name="mac")
def _mac(tmp_path):
    return Mac(tmp_path / "mac", "m5-pro-64gb-macos26.6.1", gpu_core_count=20)


def test_what_does_not_fit_is_refused_before_a_byte_is_fetched(mac):
    """The Hub of the tests answers nobody, so an attempt to fetch would end differently."""
    done = mac.r1mac("run", "671b", "Hello")
    assert done.returncode == 4
    assert "needs" in done.stderr
    assert "`r1mac run 70b`" in done.stderr
    assert done.stdout == ""


def test_where_only_the_limit_is_in_the_way_the_command_is_named(mac):
    done = mac.r1mac("run", "70b", "Hello", "--context", "32768")
    assert done.returncode == 4
    assert "`r1mac tune 70b --context 32768 --apply`" in done.stderr
    assert mac.wired_limit_mib == 0


def ask(mac: Mac, answer: str) -> tuple[int, str]:
    """Run the 70B on a terminal and answer its question; return the exit code and what was shown."""
    program, *arguments = mac.command("run", "70b", "Hello", "--context", "32768")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "NO_COLOR": "1", "COLUMNS": "200"}
    process = pexpect.spawn(program, arguments, env=environment, timeout=60, encoding="utf-8", dimensions=(40, 200))
    process.expect("until this Mac starts again")
    process.sendline(answer)
    process.expect(pexpect.EOF)
    process.wait()
    return process.exitstatus, process.before


def test_on_a_terminal_the_limit_is_raised_if_the_person_says_so_and_the_run_goes_on(mac):
    """After «yes» the next thing that is missing is the model itself, which the Hub of the tests does not give."""
    code, shown = ask(mac, "y")
    assert mac.wired_limit_mib == 54272
    assert "54272 MiB now" in shown
    assert "r1mac tune --undo" in shown
    assert code == 16, shown
    assert "70b" in mac.r1mac("tune", "70b").stdout
    assert mac.r1mac("tune", "--undo").returncode == 0
    assert mac.wired_limit_mib == 0


def test_a_no_changes_nothing(mac):
    code, shown = ask(mac, "n")
    assert (code, mac.wired_limit_mib) == (4, 0)
    assert "--apply" in shown


def test_a_second_run_that_would_over_commit_says_who_holds_how_much(r1mac, environment, tiny):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(10**6 * GIB)], env=environment, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refused = r1mac("run", str(tiny), "Hello", "--max-tokens", "2")
        forced = r1mac("run", str(tiny), "Hello", "--max-tokens", "2", "--force")
        other.kill()
    alone = r1mac("run", str(tiny), "Hello", "--max-tokens", "2")

    assert refused.returncode == 4
    assert f"for R1 70B at 4 bits (process {other.pid})" in refused.stderr
    assert (forced.returncode, alone.returncode) == (0, 0)
    assert f"(process {other.pid}); going on, as --force says" in forced.stderr
    assert "going on" not in alone.stderr


def killed_in_the_middle(environment: dict[str, str], model: Path) -> None:
    """Kill a run that is writing an answer."""
    process = subprocess.Popen(
        [*COMMAND, "run", str(model), "Hello", "--max-tokens", "4000", "--context", "4096"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    runs = Path(environment["R1MAC_HOME"]) / "runs"
    while process.poll() is None and not any('"run"' in path.read_text() for path in runs.glob("*.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_run_that_was_killed_is_told_of_at_the_next_start_and_only_then(r1mac, environment, tiny):
    """The next run says what was killed and what would need less; the one after it has nothing to say."""
    killed_in_the_middle(environment, tiny)
    examined = r1mac("doctor")
    following, later = (r1mac("run", str(tiny), "Hello", "--max-tokens", "2") for _ in range(2))

    assert "r1mac was killed or crashed while it ran tiny" in examined.stdout
    assert examined.returncode == 0
    assert "r1mac was killed or crashed while it ran tiny" in following.stderr
    assert "memory was hardly the reason" in following.stderr
    assert "killed" not in later.stderr


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_in_order_leaves_nothing(environment, tiny, ending):
    """Nobody reads what it writes, so that it is still at work when it is told to end, however slow the test is."""
    home = Path(environment["R1MAC_HOME"])
    # Random weights never end by themselves at this temperature without that token.
    asked = ("Hello", "--json", "--seed", "7", "--temperature", "1.3", "--top-p", "1", "--logit-bias", "1=-100")
    with subprocess.Popen(
        [*COMMAND, "run", str(tiny), *asked, "--max-tokens", "4000", "--context", "4096"],
        env=environment | UNCOMPILED,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pipesize=4096,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()  # it is at work, and soon its pipe is full
        at_work = list((home / "runs").glob("*.json"))
        process.send_signal(ending)
        process.communicate(timeout=60)

    assert b"event" in first
    assert at_work != []
    assert list((home / "runs").glob("*.json")) == []
    assert list((home / "running").glob("*.json")) == []
    assert process.returncode == (-signal.SIGTERM if ending is signal.SIGTERM else 130)
