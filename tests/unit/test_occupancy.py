"""Two r1mac processes on one computer know of each other."""

import os
import signal
import subprocess
import sys

import pytest

from r1mac.errors import DoesNotFit
from r1mac.machine import occupancy

GIB = 1024**3

HOLD = """
import sys, time
from pathlib import Path
from r1mac.machine import occupancy
with occupancy.occupy("R1 70B", planned_bytes=40 * 1024**3, budget_bytes=100 * 1024**3,
                      wired_limit_bytes=110 * 1024**3, folder=Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def occupy(folder, planned_gib, *, force=False):
    return occupancy.occupy(
        "R1 32B",
        planned_bytes=planned_gib * GIB,
        budget_bytes=50 * GIB,
        wired_limit_bytes=60 * GIB,
        force=force,
        folder=folder,
    )


def test_nobody_holds_anything_in_a_folder_that_is_not_there(tmp_path):
    assert occupancy.holders(tmp_path / "none") == ()


def test_a_second_process_that_fits_beside_the_first_goes_on(tmp_path, other):
    with occupy(tmp_path, 10):
        assert [holder.pid for holder in occupancy.holders(tmp_path)] == [other.pid, os.getpid()]
    (left,) = occupancy.holders(tmp_path)
    assert (left.pid, left.title, left.planned_bytes) == (other.pid, "R1 70B", 40 * GIB)


def test_a_second_process_that_would_over_commit_says_who_holds_how_much(tmp_path, other):
    with pytest.raises(DoesNotFit) as caught, occupy(tmp_path, 11):
        pass
    assert caught.value.problem == (
        f"R1 32B needs 11.0 GiB of 50.0 GiB, and r1mac already holds 40.0 GiB for R1 70B (process {other.pid})"
    )
    assert f"kill {other.pid}" in (caught.value.hint or "")


def test_force_goes_on_knowingly(tmp_path, other):
    with occupy(tmp_path, 11, force=True):
        assert len(occupancy.holders(tmp_path)) == 2


def test_a_killed_process_holds_nothing(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert occupancy.holders(tmp_path) == ()
    with occupy(tmp_path, 50):
        assert [holder.pid for holder in occupancy.holders(tmp_path)] == [os.getpid()]
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_one_model_alone_is_the_planners_business(tmp_path):
    """The lock refuses over-committing by two; a single plan was judged before."""
    with occupy(tmp_path, 60):
        pass


def test_what_is_no_record_is_passed_over(tmp_path):
    import fcntl

    with (tmp_path / "1-x.json").open("w") as file:
        file.write('{"pid": "many"}')
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert occupancy.holders(tmp_path) == ()
    (tmp_path / "2-x.json").symlink_to("/etc/passwd")
    assert occupancy.holders(tmp_path) == ()
