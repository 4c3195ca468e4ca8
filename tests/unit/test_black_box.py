"""The record of a run: real processes that end in order, and real ones that are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1mac.catalog.models import find
from r1mac.machine.fake import M4_MAX_128, FakeMachine
from r1mac.machine.readings import Boot
from r1mac.plan.fit import MemoryPlan, fit
from r1mac.prepare.black_box import recorded
from r1mac.prepare.unfinished import mark_told, unfinished

BOOT = Boot(session="11111111-0000-4000-8000-000000000001", started_at_s=1_762_000_000)
MACHINE = FakeMachine(M4_MAX_128, boot=BOOT)
RESTARTED = FakeMachine(
    M4_MAX_128, boot=Boot(session="11111111-0000-4000-8000-000000000002", started_at_s=1_762_900_000)
)
ROOT = Path(__file__).parents[2]

# A run: it says when it has begun, then does what it is told to.
_RUN = """
import sys, time
from pathlib import Path
from r1mac.prepare.black_box import recorded
from tests.unit.test_black_box import MACHINE, plan

with recorded(plan(), MACHINE, model="70b", bits=None, title="R1-Distill-Llama-70B", folder=Path(sys.argv[1])) as recording:
    recording.enter("run")
    try:
        print("half a line, ", end="")
        print("begun", file=sys.stderr, flush=True)
        {what}
    finally:
        print("unwound", flush=True)
"""


def plan() -> MemoryPlan:
    """Plan the 70B on a Mac with 128 GB."""
    spec = find("70b")
    assert spec is not None
    return fit(spec.arch, M4_MAX_128, stored_bytes=39_700_000_000)


def start(folder: Path, what: str) -> "subprocess.Popen[str]":
    """Start a run that does *what*, and return when it has begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN.format(what=what), str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "begun\n"
    return process


def stop(process: "subprocess.Popen[str]", number: int) -> tuple[str, str]:
    """Send a signal, wait for the end and return what was still printed."""
    process.send_signal(number)
    return process.communicate(timeout=60)


def test_a_run_that_was_killed_is_found_once_it_is_dead(tmp_path):
    """While it lives a run is none of the unfinished; after kill -9 it is, with its plan and how far it had come."""
    process = start(tmp_path, "time.sleep(600)")
    alive = unfinished(MACHINE, folder=tmp_path)
    stop(process, signal.SIGKILL)
    (left,) = unfinished(MACHINE, folder=tmp_path)

    assert alive == ()
    assert left.ending == "killed"
    assert (left.record.pid, left.record.phase, left.record.model) == (process.pid, "run", "70b")
    assert left.record.total_bytes == plan().total_bytes
    assert abs(left.record.started_at_s - time.time()) < 300


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_asks_for_the_end_is_an_end_in_order(tmp_path, number):
    """kill, a closed window and Ctrl-C unwind what the run holds and leave no record."""
    process = start(tmp_path, "time.sleep(600)")
    output, _ = stop(process, number)

    assert output == "half a line, unwound\n"  # nor is anything lost that was written already
    assert process.returncode == -number  # for a shell it died of that signal
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "code"), [("pass", 0), ("raise ValueError('a bug')", 1), ("sys.exit(4)", 4), ("1 / 0", 1)]
)
def test_an_end_that_python_notices_leaves_nothing(tmp_path, what, code):
    """A good end, an error and a bug take the record away."""
    process = start(tmp_path, what)
    process.communicate(timeout=60)

    assert process.returncode == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["import os; os.abort()", "import os; os._exit(3)"])
def test_an_end_that_python_does_not_notice_leaves_the_record(tmp_path, what):
    """A crash in a library leaves what was planned, as a panic of the whole computer does."""
    process = start(tmp_path, what)
    process.communicate(timeout=60)

    assert [left.ending for left in unfinished(MACHINE, folder=tmp_path)] == ["killed"]


def test_two_runs_at_once_have_a_record_each(tmp_path):
    """The end of one run says nothing of the other, and the death of one neither."""
    first, second = start(tmp_path, "time.sleep(600)"), start(tmp_path, "time.sleep(600)")
    stop(first, signal.SIGKILL)
    (left,) = unfinished(MACHINE, folder=tmp_path)
    stop(second, signal.SIGTERM)

    assert left.record.pid == first.pid
    assert [run.record.pid for run in unfinished(MACHINE, folder=tmp_path)] == [first.pid]


def test_a_record_of_another_start_is_a_restart(tmp_path):
    """After the computer has started again the same record means more than a dead process."""
    stop(start(tmp_path, "time.sleep(600)"), signal.SIGKILL)

    assert [run.ending for run in unfinished(RESTARTED, folder=tmp_path)] == ["restart"]


def test_what_a_person_was_told_is_not_told_again(tmp_path):
    """A run that was reported is news once; it stays for those who ask, until a run has ended well."""
    stop(start(tmp_path, "time.sleep(600)"), signal.SIGKILL)
    mark_told(unfinished(MACHINE, folder=tmp_path))
    again, asked = unfinished(MACHINE, folder=tmp_path), unfinished(MACHINE, with_told=True, folder=tmp_path)
    with recorded(plan(), MACHINE, model="8b", bits=None, title="8B", folder=tmp_path):
        meanwhile = unfinished(MACHINE, with_told=True, folder=tmp_path)

    assert again == ()
    assert len(asked) == len(meanwhile) == 1
    assert unfinished(MACHINE, with_told=True, folder=tmp_path) == ()


def test_what_a_person_was_told_stays_until_a_run_ends_well(tmp_path):
    """A run that failed proves nothing: the doctor still names the one before it."""
    stop(start(tmp_path, "time.sleep(600)"), signal.SIGKILL)
    mark_told(unfinished(MACHINE, folder=tmp_path))
    with (
        pytest.raises(ZeroDivisionError),
        recorded(plan(), MACHINE, model="8b", bits=None, title="8B", folder=tmp_path),
    ):
        raise ZeroDivisionError

    assert len(unfinished(MACHINE, with_told=True, folder=tmp_path)) == 1


def test_a_name_too_long_for_a_record_stops_no_run(tmp_path, caplog):
    """Nothing is written that could be read only in part."""
    with recorded(plan(), MACHINE, model="/x" * 9000, bits=None, title="8B", folder=tmp_path):
        assert list(tmp_path.iterdir()) == []

    assert "no record of this run" in caplog.text


def test_a_record_says_where_the_run_is(tmp_path):
    """It is on the disk before the block begins, and follows the run from loading to running."""
    with recorded(plan(), MACHINE, model="70b", bits=None, title="70B", folder=tmp_path) as recording:
        (path,) = tmp_path.iterdir()
        loading = json.loads(path.read_text())
        recording.enter("run")
        (path,) = tmp_path.iterdir()
        running = json.loads(path.read_text())

    assert (loading["phase"], running["phase"]) == ("load", "run")
    assert loading["boot_session"] == BOOT.session
    assert loading | {"phase": "run"} == running


def test_a_folder_that_cannot_be_written_stops_no_run(tmp_path, caplog):
    """A run is worth more than its record."""
    (tmp_path / "file").write_text("")
    done = []
    with recorded(plan(), MACHINE, model="70b", bits=None, title="70B", folder=tmp_path / "file" / "runs"):
        done.append(True)

    assert done == [True]
    assert "no record of this run" in caplog.text
    assert unfinished(MACHINE, folder=tmp_path / "file" / "runs") == ()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": 1}', "\x00", "9" * 5000])
def test_a_broken_record_is_no_record(tmp_path, content):
    """What was cut off while it was written, or written by somebody else, says nothing."""
    (tmp_path / "1-aaaa.json").write_text(content)

    assert unfinished(MACHINE, folder=tmp_path) == ()


@pytest.mark.parametrize(
    "changes", [{"total_bytes": 0}, {"context_tokens": "many"}, {"phase": "sleep"}, {"boot_session": 5}, {"pid": True}]
)
def test_a_record_with_impossible_values_is_no_record(tmp_path, changes):
    """Numbers that cannot be divided by, and words that mean nothing, are not reckoned with."""
    stop(start(tmp_path, "time.sleep(600)"), signal.SIGKILL)
    (path,) = tmp_path.iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    assert unfinished(MACHINE, folder=tmp_path) == ()


def test_records_of_a_home_that_is_not_there(tmp_path):
    """Without a folder nothing was left."""
    assert unfinished(MACHINE, folder=tmp_path / "none") == ()
    assert list(tmp_path.iterdir()) == []


def test_signals_are_as_before_after_a_run(tmp_path):
    """What a run changes of the process it puts back, and a handler of somebody else it leaves alone."""
    before = signal.getsignal(signal.SIGTERM)
    own = signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        with recorded(plan(), MACHINE, model="70b", bits=None, title="70B", folder=tmp_path):
            assert signal.getsignal(signal.SIGTERM) is not before
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, own)

    assert signal.getsignal(signal.SIGTERM) is before
