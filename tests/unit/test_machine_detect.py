"""Choosing the kind of computer, the fake one, and the room on a disk."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r1mac.machine import fake
from r1mac.machine.base import HardwareProfile
from r1mac.machine.darwin import DarwinMachine
from r1mac.machine.detect import detect
from r1mac.machine.disk import free_disk_bytes
from r1mac.machine.generic import GenericMachine
from r1mac.machine.readings import Boot, Disk, MemoryState, Panic, Readings
from r1mac.units import GB, GIB

PROFILES = {name: value for name, value in vars(fake).items() if isinstance(value, HardwareProfile)}


@pytest.mark.parametrize(
    ("platform", "kind"), [("darwin", DarwinMachine), ("linux", GenericMachine), ("win32", GenericMachine)]
)
def test_detect_picks_by_platform(platform, kind):
    """Only macOS gets the Mac's machine."""
    assert type(detect(platform)) is kind


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux tells its memory without psutil")
def test_detecting_loads_nothing_heavy():
    """Finding out about the computer costs no import that a short command would feel."""
    code = (
        "import sys; from r1mac.machine.detect import detect; detect().profile(); detect('darwin'); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {"psutil", "rich", "mlx", "numpy", "subprocess", "platformdirs"} & set(loaded)


@pytest.mark.parametrize("below", ["", "models", "models/r1/one.safetensors", "file", "file/below"])
def test_free_disk_of_a_path_that_need_not_exist(tmp_path, below):
    """The room is that of the nearest existing parent, also below a file."""
    (tmp_path / "file").write_text("")

    assert free_disk_bytes(tmp_path / below) == pytest.approx(shutil.disk_usage(tmp_path).free, abs=GB)


def test_free_disk_of_a_relative_path():
    """A relative path is below the current folder."""
    assert free_disk_bytes(Path("no/such/folder")) > 0


@pytest.mark.parametrize("machine", [DarwinMachine(run=lambda argv: pytest.fail(str(argv))), GenericMachine()])
def test_every_machine_tells_its_free_disk(machine, tmp_path):
    """The disk's room needs no command of the system."""
    assert machine.free_disk_bytes(tmp_path / "new") == pytest.approx(shutil.disk_usage(tmp_path).free, abs=GB)


def test_a_fake_machine_says_what_it_was_made_of(tmp_path):
    """A fake machine answers with the numbers given."""
    machine = fake.FakeMachine(fake.M4_16, free_disk_bytes=5 * GB, available_memory_bytes=3 * GIB)

    assert machine.profile() is fake.M4_16
    assert machine.free_disk_bytes(tmp_path) == 5 * GB
    assert machine.available_memory_bytes() == 3 * GIB


def test_a_fake_machine_has_all_its_memory_by_default(tmp_path):
    """Nothing else runs on a fake machine, and its disk is a large one."""
    machine = fake.FakeMachine(fake.M4_16)

    assert machine.available_memory_bytes() == 16 * GIB
    assert machine.free_disk_bytes(tmp_path) == 1000 * GB


def test_a_fake_machine_has_the_state_it_was_made_of(tmp_path):
    """Readings, ports, disks, panics and settings are those given; panics only as far back as is asked."""
    readings = Readings(memory=MemoryState(pressure="critical"), thermal="heavy")
    panic = Panic(path=tmp_path, at_s=1000.0, reason="x", cause="gpu")
    machine = fake.FakeMachine(fake.M4_16, readings=readings, boot=Boot(session="A"), panics=(panic,))

    assert (machine.readings(), machine.memory_state()) == (readings, readings.memory)
    assert machine.boot() == Boot(session="A")
    assert machine.panics(since_s=1000) == (panic,)
    assert machine.panics(since_s=1001) == ()
    assert fake.FakeMachine(fake.M4_16, panics=None).panics(since_s=0) is None
    assert fake.FakeMachine(fake.M4_16, disk=Disk(kind="network")).disk(tmp_path).kind == "network"


def test_no_room_at_all_is_not_the_default():
    """Zero is a number that can be asked for."""
    machine = fake.FakeMachine(fake.M4_16, free_disk_bytes=0, available_memory_bytes=0)

    assert machine.available_memory_bytes() == 0
    assert machine.free_disk_bytes(Path("/")) == 0


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES.keys())
def test_ready_profiles_are_possible_computers(profile):
    """A ready profile can hold a model, leaves some memory alone, and a Mac's has a bandwidth."""
    assert profile.memory_bytes // 2 <= profile.wired_limit_bytes < profile.memory_bytes
    assert (profile.memory_bandwidth_bytes_per_s is not None) == (profile.system == "macos")
    assert profile.fused_attention == (profile.system == "macos")


@pytest.mark.parametrize(
    ("name", "wired_limit_bytes", "source"),
    [
        ("M1_8", 5726633984, "default"),
        ("M4_16", 12713115648, "default"),
        ("M3_MAX_36", 30150672384, "default"),
        ("M3_MAX_36_MACOS15", 28991029248, "default"),
        ("M4_PRO_48", 40200896512, "default"),
        ("M5_PRO_64", 55662788608, "default"),
        ("M2_MAX_96", 83494174720, "default"),
        ("M4_MAX_128", 115448725504, "default"),
        ("M2_ULTRA_192", 173173096448, "estimated"),  # 0.84 x 192 GiB = 10569646.1 pages of 16 KiB
        ("M5_ULTRA_256", 223338299392, "estimated"),
        ("M3_ULTRA_512", 498216206336, "default"),
        ("M6_32_MACOS27", 26800603136, "estimated"),
        ("LINUX_64", 64 * GIB - 64 * GIB // 10, "memory"),
    ],
)
def test_limits_of_the_ready_profiles(name, wired_limit_bytes, source):
    """The ready profiles have the limits that such computers really have."""
    profile = PROFILES[name]

    assert (profile.wired_limit_bytes, profile.wired_limit_source) == (wired_limit_bytes, source)


def test_a_fake_mac_may_have_a_set_limit():
    """A limit in MiB makes an override of the same size."""
    profile = fake.mac("Apple M4 Max", memory_gib=128, gpu_core_count=40, wired_limit_mib=114_688)

    assert (profile.wired_limit_bytes, profile.wired_limit_source) == (112 * GIB, "override")
