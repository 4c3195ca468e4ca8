"""What the doctor says of crashes and of runs that did not end."""

import json
import time
from pathlib import Path

import pytest

from r1mac import paths
from r1mac.catalog.models import find
from r1mac.doctor.history import check_last_run, check_panics
from r1mac.machine import fake
from r1mac.machine.fake import FakeMachine
from r1mac.machine.process_records import SUFFIX
from r1mac.machine.readings import Boot, Panic
from r1mac.plan.fit import fit
from r1mac.prepare.black_box import recorded
from r1mac.prepare.unfinished import mark_told, unfinished
from tests.doctors import BOOT, NOW_S, examination, status_and_words

HOUR = 3600
GPU = '"completeMemory() prepare count underflow" @IOGPUMemory.cpp:550'
WATCHDOG = "watchdog timeout: no checkins from watchdogd in 93 seconds"


@pytest.fixture(autouse=True)
def _utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def panic(hours_ago: float, cause: str = "gpu", **facts: str) -> Panic:
    """Return the report of a crash."""
    return Panic(
        path=Path("x"),
        at_s=NOW_S - hours_ago * HOUR,
        reason={"gpu": GPU, "starved": WATCHDOG}.get(cause, "busy timeout"),
        cause=cause,
        **facts,
    )


@pytest.mark.parametrize(
    ("panics", "status", "words"),
    [
        ((), "ok", ("none in the last 72 hours",)),
        ((panic(73),), "ok", ("none in the last 72 hours",)),
        ((panic(5, "other"),), "ok", ("none by the GPU, 1 by something else",)),
        ((panic(5, task="python3.12"),), "warn", ("once", GPU, "while python3.12 ran", "one model and one request")),
        ((panic(2, "starved"), panic(5)), "warn", ("2 times", WATCHDOG, "r1mac tune --status")),
        (None, "ok", ("only an administrator",)),
    ],
)
def test_crashes_of_the_last_three_days(panics, status, words):
    """Crashes by the GPU's driver and by a starved system are warnings; others and older ones are none."""
    assert status_and_words(check_panics, examination(fake.M4_MAX_128, panics=panics), *words) == status


def leave_a_record(boot: Boot) -> None:
    """Leave what a killed run of the 70B leaves."""
    spec = find("70b")
    assert spec is not None
    plan = fit(spec.arch, fake.M4_MAX_128, stored_bytes=39_700_000_000)
    with recorded(plan, FakeMachine(fake.M4_MAX_128, boot=boot), model="70b", bits=None, title="the 70B"):
        (path,) = paths.runs_dir().glob(f"*{SUFFIX}")
        content = path.read_bytes()
    path.write_bytes(content)


def test_a_last_run_that_ended_in_order():
    """Nothing is left of it."""
    assert status_and_words(check_last_run, examination(fake.M4_MAX_128), "ended in order") == "ok"


def test_a_last_run_that_was_killed_stays_until_one_ends_well():
    """The doctor names it with a lower plan, also when another command has told of it."""
    leave_a_record(BOOT)
    mac = examination(fake.M4_MAX_128)
    mark_told(unfinished(mac.machine))

    words = ("killed or crashed", "the 70B", "GiB planned of 107.5 GiB", "r1mac run 70b --context")
    assert status_and_words(check_last_run, mac, *words) == "warn"


def test_a_last_run_that_needed_little():
    """Memory is not called the reason in one line and hardly the reason in the next, and no other plan is advised."""
    spec = find("1.5b")
    assert spec is not None
    plan = fit(spec.arch, fake.M4_MAX_128, stored_bytes=1_000_000_000)
    leave_a_record(BOOT)
    (path,) = paths.runs_dir().glob(f"*{SUFFIX}")
    record = json.loads(path.read_text()) | {"total_bytes": plan.total_bytes, "model": "1.5b"}
    path.write_text(json.dumps(record))
    (result,) = check_last_run(examination(fake.M4_MAX_128))

    assert "memory was hardly the reason" in str(result.why)
    assert result.fix == "`r1mac -v run 1.5b` says more if it happens again"


def test_a_last_run_that_took_the_mac_with_it():
    """A crash report of the same start of the Mac is laid beside the record."""
    before = Boot(session="7EDF3EA8-1F47-4E07-A28D-C02488B3E469", started_at_s=5)
    leave_a_record(before)
    crash = Panic(path=Path("x"), at_s=time.time() + 90, reason=GPU, cause="gpu", session=before.session)
    mac = examination(fake.M4_MAX_128, panics=(crash,))

    assert status_and_words(check_last_run, mac, "the computer crashed while r1mac", "IOGPUMemory.cpp:550") == "warn"
