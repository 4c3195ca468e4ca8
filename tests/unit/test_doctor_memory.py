"""What the doctor says of limits, pressure, swap and memory that nobody gives back."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac import paths
from r1mac.catalog.models import find
from r1mac.doctor.examination import Examination
from r1mac.doctor.memory import (
    check_pressure,
    check_startup,
    check_swap,
    check_tuning_record,
    check_wired_limit,
    check_wired_memory,
)
from r1mac.engine.device import Device
from r1mac.machine import fake
from r1mac.machine.darwin import default_wired_limit_bytes
from r1mac.machine.fake import FakeMachine
from r1mac.machine.occupancy import occupy
from r1mac.machine.process_records import SUFFIX
from r1mac.machine.readings import Boot, MemoryState, Readings, StartupSetting
from r1mac.plan.fit import fit
from r1mac.prepare.black_box import recorded
from r1mac.units import GIB, MIB
from tests.doctors import BOOT, examination, only, status_and_words

OWN = Path("/Library/LaunchDaemons/dev.r1mac.gpu-wired-limit.plist")
OTHER = Path("/Library/LaunchDaemons/com.me.gpu.plist")
CONF = Path("/etc/sysctl.conf")


def limited(memory_gib: int, wired_limit_mib: int, **state: object) -> Examination:
    """Return the examination of an M4 Max whose limit is set."""
    return examination(
        fake.mac("Apple M4 Max", memory_gib=memory_gib, gpu_core_count=40, wired_limit_mib=wired_limit_mib), **state
    )


# The wired limit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory_gib", "wired_limit_mib", "status", "words"),
    [
        (128, 0, "ok", ("107.5 GiB of 128.0 GiB (macOS's default)",)),
        (128, 114_688, "ok", ("112.0 GiB of 128.0 GiB (set by iogpu.wired_limit_mb)",)),
        (128, 124 * 1024, "ok", ("124.0 GiB",)),  # exactly 4 GiB remain
        (128, 124 * 1024 + 1, "fail", ("4.0 GiB remain", "sudo sysctl iogpu.wired_limit_mb=0")),
        (128, 126 * 1024, "fail", ("only 2.0 GiB remain for macOS",)),
        (128, 200 * 1024, "fail", ("more than all of the memory",)),
        (128, 90 * 1024, "warn", ("macOS by itself would allow 107.5 GiB",)),
        (192, 0, "ok", ("estimated",)),
    ],
)
def test_a_limit_that_endangers_the_mac_fails(memory_gib, wired_limit_mib, status, words):
    """Less than 4 GiB for macOS fails, less than macOS's own limit is a warning, and the way back is a command."""
    assert status_and_words(check_wired_limit, limited(memory_gib, wired_limit_mib), *words) == status


@given(st.sampled_from([8, 16, 24, 36, 64, 128, 192, 512]), st.integers(1, 600 * 1024))
def test_only_what_leaves_too_little_fails(memory_gib, wired_limit_mib):
    """A limit fails exactly where it leaves macOS less than 4 GiB, and less than macOS's own limit would."""
    mac = limited(memory_gib, wired_limit_mib)
    own_mib = default_wired_limit_bytes(memory_gib * GIB, 26) / MIB

    assert (only(check_wired_limit(mac)).status == "fail") == (wired_limit_mib > max((memory_gib - 4) * 1024, own_mib))


def test_mlx_and_kernel_that_disagree():
    """Where Metal tells MLX another limit than r1mac plans with, both numbers are named."""
    device = Device(name="Apple M2 Ultra", on_gpu=True, working_set_bytes=150 * GIB)
    first, second = check_wired_limit(examination(fake.M2_ULTRA_192, device=device))
    overridden = limited(128, 114_688, device=Device(name="x", on_gpu=True, working_set_bytes=107 * GIB))

    assert (first.status, second.status) == ("ok", "warn")
    assert "150.0 GiB (161061273600 bytes)" in second.found
    assert "report both" in str(second.fix)
    assert [*check_wired_limit(overridden)][1].fix == "restart this Mac"


def test_a_process_that_was_started_under_another_limit(tmp_path):
    """A server that runs keeps the limit of its start, and is named with the command that ends it."""
    with occupy("the 70B", planned_bytes=GIB, budget_bytes=90 * GIB, wired_limit_bytes=100 * GIB):
        limit, process = check_wired_limit(limited(128, 114_688))

    assert limit.status == "ok"
    assert process.status == "warn"
    assert "the 70B was started under a limit of 100.0 GiB" in process.found
    assert f"kill {process.subject}" in str(process.fix)


def test_no_other_computer_has_a_wired_limit():
    """Linux has none to be told of."""
    assert [*check_wired_limit(examination(fake.LINUX_64)), *check_startup(examination(fake.LINUX_64))] == []


@pytest.mark.parametrize(
    ("setting", "wired_limit_mib", "status", "words"),
    [
        ((OWN, "iogpu.wired_limit_mb", 114_688), 114_688, "ok", ("sets 114688 MiB",)),
        ((OWN, "iogpu.wired_limit_mb", 114_688), 0, "warn", ("macOS's own limit", "r1mac tune --undo")),
        ((OTHER, "iogpu.wired_limit_mb", 114_688), 112_640, "warn", ("112640 MiB", "sudo rm", str(OTHER))),
        ((OTHER, "iogpu.wired_limit_mb", 130_000), 130_000, "fail", ("every start", "sudo rm")),
        ((CONF, "iogpu.wired_limit_mb", 114_688), 0, "warn", ("does not read", "--apply --persist")),
        (
            (CONF, "iogpu.wired_mem_alloc_limit_percent", 90),
            0,
            "warn",
            ("macOS knows no iogpu.wired_mem_alloc_limit_percent", "does not read"),
        ),
    ],
)
def test_what_sets_the_limit_at_each_start(setting, wired_limit_mib, status, words):
    """A daemon that did not do its work, one that endangers the Mac, and what blogs advise are told apart."""
    path, key, value = setting
    mac = limited(128, wired_limit_mib, startup_settings=(StartupSetting(path=path, key=key, value=value),))

    assert status_and_words(check_startup, mac, *words) == status


def test_a_record_of_tune_that_cannot_be_read(tmp_path):
    """The doctor names it with the command that moves it away; one that can be read, or none, is not worth a line."""
    mac = limited(64, 0)
    absent = [*check_tuning_record(mac)]
    paths.tuning_file().parent.mkdir(parents=True)
    paths.tuning_file().write_bytes(b"\xff\x00")

    path = paths.tuning_file()
    assert absent == []
    assert status_and_words(check_tuning_record, mac, f"mv {path} {path}.bad", "cannot be read") == "warn"


def test_another_users_process_is_not_to_be_killed(monkeypatch):
    with occupy("the 70B", planned_bytes=GIB, budget_bytes=90 * GIB, wired_limit_bytes=100 * GIB):
        monkeypatch.setattr(os, "getuid", lambda: 54321)
        _, process = check_wired_limit(limited(128, 114_688))

    assert "kill" not in str(process.fix)
    assert "another user" in str(process.fix)


# Pressure and swap --------------------------------------------------------------------------------


@pytest.mark.parametrize(("pressure", "status"), [("normal", "ok"), ("warn", "warn"), ("critical", "fail")])
def test_memory_pressure(pressure, status):
    """The kernel's verdict decides."""
    mac = examination(fake.M4_PRO_48, readings=Readings(memory=MemoryState(pressure=pressure)))

    assert only(check_pressure(mac)).status == status


@pytest.mark.parametrize(
    ("pressure", "used_gib", "status"),
    [("normal", 18, "ok"), ("warn", 18, "warn"), ("warn", 3, "ok"), (None, 18, "warn"), (None, 0, "ok")],
)
def test_swap_is_judged_with_pressure(pressure, used_gib, status):
    """A calm Mac with 18 of 48 GiB swapped is well; one under pressure is not."""
    memory = MemoryState(pressure=pressure, swap_used_bytes=used_gib * GIB, swap_total_bytes=20 * GIB)

    assert only(check_swap(examination(fake.M4_PRO_48, readings=Readings(memory=memory)))).status == status


def test_what_is_unknown_is_not_judged():
    """Without readings nothing is said."""
    mac = examination(fake.M4_PRO_48)

    assert [*check_pressure(mac), *check_swap(mac), *check_wired_memory(mac)] == []


# Memory that a dead process holds -----------------------------------------------------------------


def wired(gib: float, **state: object) -> Examination:
    """Return the examination of a Mac with 512 GB of which so much is wired."""
    return examination(fake.M3_ULTRA_512, readings=Readings(wired_bytes=round(gib * GIB)), **state)


def leave_a_record(boot: Boot) -> None:
    """Leave what a killed run leaves: its record, and nobody who holds it."""
    spec = find("70b")
    assert spec is not None
    machine = FakeMachine(fake.M3_ULTRA_512, boot=boot)
    plan = fit(spec.arch, fake.M3_ULTRA_512, stored_bytes=39_700_000_000)
    with recorded(plan, machine, model="70b", bits=None, title="the 70B"):
        (path,) = paths.runs_dir().glob(f"*{SUFFIX}")
        content = path.read_bytes()
    path.write_bytes(content)


def test_wired_memory_that_is_usual():
    """Up to half of the memory nothing is suspected."""
    assert status_and_words(check_wired_memory, wired(256), "256.0 GiB of 512.0 GiB") == "ok"


def test_wired_memory_without_an_r1mac():
    """More than half may belong to another program, which is asked about before a restart is advised."""
    assert status_and_words(check_wired_memory, wired(414), "no r1mac runs", "LM Studio", "restart this Mac") == "warn"


def test_wired_memory_after_a_kill():
    """After a run that was killed in this start of the Mac it is taken for that run's, and only a restart helps."""
    leave_a_record(BOOT)

    assert status_and_words(check_wired_memory, wired(414), "restart this Mac") == "fail"
    assert "LM Studio" not in str(only(check_wired_memory(wired(414))).fix)


def test_wired_memory_after_a_restart():
    """A run that an earlier start of the Mac ended holds nothing any more."""
    leave_a_record(Boot(session="22222222-0000-4000-8000-000000000002", started_at_s=1))

    assert only(check_wired_memory(wired(414))).status == "warn"


def test_wired_memory_of_a_running_model():
    """What an r1mac that runs holds is as it should be."""
    with occupy("the 671B", planned_bytes=400 * GIB, budget_bytes=450 * GIB, wired_limit_bytes=464 * GIB):
        result = only(check_wired_memory(wired(414)))

    assert result.status == "ok"
    assert "while r1mac runs the 671B (process" in result.found
