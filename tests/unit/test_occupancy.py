"""Two r1mac processes on one computer know of each other."""

import contextlib
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

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


def occupy(folder, planned_gib, *, force=False, on_others=None):
    return occupancy.occupy(
        "R1 32B",
        planned_bytes=planned_gib * GIB,
        budget_bytes=50 * GIB,
        wired_limit_bytes=60 * GIB,
        force=force,
        on_others=on_others,
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
    """It says past whom, and only where it goes past somebody."""
    told = []
    with occupy(tmp_path, 11, force=True, on_others=told.append):
        assert len(occupancy.holders(tmp_path)) == 2
    with occupy(tmp_path, 10, force=True, on_others=told.append):
        pass

    assert [occupancy.held_by(others) for others in told] == [f"40.0 GiB for R1 70B (process {other.pid})"]


def test_a_plan_that_changes_is_told_and_judged_beside_the_others_alone(tmp_path, other):
    """What this process held before does not count against it, and still is held where there is no room for more."""
    with occupy(tmp_path, 8) as occupied:
        for planned_gib, fits in ((10, True), (11, False), (4, True)):
            held = [holder.planned_bytes for holder in occupancy.holders(tmp_path)]
            sizes = {"planned_bytes": planned_gib * GIB, "budget_bytes": 50 * GIB, "wired_limit_bytes": 60 * GIB}
            with contextlib.nullcontext() if fits else pytest.raises(DoesNotFit, match=r"11\.0 GiB of 50\.0"):
                occupied.hold(**sizes)
            now = [holder.planned_bytes for holder in occupancy.holders(tmp_path)]
            assert now == ([40 * GIB, planned_gib * GIB] if fits else held)
    assert len(occupancy.holders(tmp_path)) == 1


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


# A folder that everybody can write -----------------------------------------------------------------


@contextlib.contextmanager
def told(folder: Path, **changes: object):
    """Let some living process tell what it likes."""
    honest = {"pid": 4711, "title": "R1 70B", "planned_bytes": 40 * GIB, "wired_limit_bytes": GIB, "started_at_s": 1.0}
    path = folder / "1-x.json"
    with path.open("w") as file:
        file.write(json.dumps(honest | changes))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": "many"}, {"pid": -1}, {"pid": 0}, {"pid": 1}, {"pid": 2**40}, {"pid": True}, {"planned_bytes": -(10**15)},
        {"planned_bytes": None}, {"started_at_s": float("nan")}, {"started_at_s": 10**400}, {"title": "x" * 20_000},
    ],
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_passed_over(tmp_path, changes):
    """Least of all is anybody told to kill process -1, which is every process."""
    with told(tmp_path, **changes):
        assert occupancy.holders(tmp_path) == ()
        with occupy(tmp_path, 50):
            pass


def test_pipes_and_links_are_passed_over(tmp_path):
    """Whoever leaves a pipe there makes nobody wait."""
    (tmp_path / "1-x.json").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "2-x.json")
    began = time.monotonic()

    assert occupancy.holders(tmp_path) == ()
    assert time.monotonic() - began < 5


def test_a_title_steers_no_terminal(tmp_path):
    with told(tmp_path, title="\x1b[2Jgone\nand\u202e more" + "e" * 500):
        (holder,) = occupancy.holders(tmp_path)

    assert holder.title.startswith(" [2Jgone and  more")
    assert holder.title.isprintable()
    assert len(holder.title) == 120


def test_nobody_is_told_to_kill_another_users_process(tmp_path, monkeypatch):
    with told(tmp_path):
        monkeypatch.setattr(os, "getuid", lambda: 54321)
        with pytest.raises(DoesNotFit) as caught, occupy(tmp_path, 11):
            pass

    assert "another user" in (caught.value.hint or "")
    assert "kill" not in (caught.value.hint or "")


def goes_on_with_a_warning(folder, caplog, *words: str) -> None:
    done = []
    with occupy(folder, 10):
        done.append(True)
    assert done == [True]
    (warning,) = caplog.messages
    for word in words:
        assert word in warning


def test_a_file_in_the_folders_place_stops_no_run(tmp_path, caplog):
    (tmp_path / "running").write_text("")
    goes_on_with_a_warning(tmp_path / "running", caplog, "do not see each other")


def test_a_link_in_the_folders_place_is_not_followed(tmp_path, caplog):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.json").write_text("{}")
    (tmp_path / "running").symlink_to(tmp_path / "elsewhere")
    goes_on_with_a_warning(tmp_path / "running", caplog, "do not see each other")

    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["mine.json"]


def test_only_records_are_cleared_away(tmp_path):
    """A file of something else, whose process lives or not, stays where it is."""
    (tmp_path / "mine.json").write_text('{"precious": true}')
    with occupy(tmp_path, 10):
        pass

    assert (tmp_path / "mine.json").exists()


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/etc/passwd"), Path.mkdir])
def test_a_lock_that_is_none_stops_no_run(tmp_path, caplog, make):
    make(tmp_path / "lock")
    goes_on_with_a_warning(tmp_path, caplog, "do not see each other")


def test_a_lock_that_somebody_keeps_is_not_waited_for_for_ever(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(occupancy, "_LOCK_WAIT_SECONDS", 0.2)
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        goes_on_with_a_warning(tmp_path, caplog, "locked for too long")


def test_the_folder_is_for_all_users_whatever_the_umask(tmp_path):
    """As /tmp is: everybody may write, and nobody delete another's file."""
    folder, umask = tmp_path / "running", os.umask(0o077)
    try:
        with occupy(folder, 10):
            (record,) = folder.glob("*.json")
            modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "lock", record)]
    finally:
        os.umask(umask)

    assert modes == [0o1777, 0o666, 0o644]
    assert [path.name for path in tmp_path.iterdir()] == ["running"]


def test_a_folder_is_never_there_with_the_wrong_mode(tmp_path, monkeypatch):
    """A process that is killed while it makes the folder leaves none that only its own user could write."""

    def killed(*_):
        raise KeyboardInterrupt

    folder = tmp_path / "running"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", killed)
        with pytest.raises(KeyboardInterrupt), occupy(folder, 10):
            pass
    assert not folder.exists()
    folder.mkdir(mode=0o755)  # one that an older r1mac left
    with occupy(folder, 10):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
