"""What the doctor says of a computer and its software."""

import pytest

from r1mac.doctor import computer
from r1mac.doctor.computer import (
    allows,
    check_computer,
    check_heat,
    check_macos,
    check_mlx,
    check_power,
    check_python,
    check_thunderbolt,
    installed_version,
    required_versions,
)
from r1mac.engine.device import Device, ask_device
from r1mac.errors import UnsupportedMachine
from r1mac.machine import fake
from r1mac.machine.readings import Port, Readings, Thunderbolt
from tests.doctors import examination, only, status_and_words
from tests.recorded import recorded


def test_a_mac_is_named():
    """Chip, memory and Apple's name for the Mac are told."""
    mac = examination(fake.M4_MAX_128, readings=Readings(model="Mac16,5"))

    assert status_and_words(check_computer, mac, "Apple M4 Max, 128.0 GiB (Mac16,5)") == "ok"


def test_a_virtual_mac_is_warned_about():
    """A model runs in a virtual Mac, without what keeps a large one fast."""
    assert status_and_words(check_computer, examination(fake.VIRTUAL_MAC_7), "virtual", "on the Mac itself") == "warn"


def test_an_intel_mac_fails():
    """What MLX cannot run on is a failure, in the words of the refusal; what it implies is not said again."""
    intel = examination(fake.M4_16)
    intel.machine = recorded("intel-macbook-pro", platform_machine="x86_64")

    assert status_and_words(check_computer, intel, "Intel processor", "M1 or a later chip") == "fail"
    assert isinstance(intel.profile_or_refusal, UnsupportedMachine)
    assert [*check_mlx(intel), *check_macos(intel), *check_thunderbolt(intel)] == []


@pytest.mark.parametrize(
    ("chip", "macos", "status", "word"),
    [
        ("Apple M2 Max", "14.7", "warn", "before macOS 15"),
        ("Apple M2 Max", "15.0", "ok", "15.0"),
        ("Apple M2 Max", "26.1", "ok", "26.1"),
        ("Apple M5 Max", "26.1", "warn", "matrix units"),
        ("Apple M5 Max", "26.2", "ok", "26.2"),
        ("Apple M10 Max", "15.7.7", "warn", "matrix units"),
        ("Apple M6", "27.0.1", "ok", "27.0.1"),
    ],
)
def test_macos_that_is_too_old_for_something(chip, macos, status, word):
    """Before 15 nothing is wired; before 26.2 the matrix units of an M5 are not used."""
    mac = examination(fake.mac(chip, memory_gib=64, gpu_core_count=32, macos=macos))

    assert status_and_words(check_macos, mac, word) == status


def test_other_computers_have_no_macos():
    """Nothing is said of what a computer does not have."""
    linux = examination(fake.LINUX_64)

    assert [*check_macos(linux), *check_power(linux), *check_heat(linux), *check_thunderbolt(linux)] == []


@pytest.mark.parametrize(("translated", "status"), [(False, "ok"), (None, "ok"), (True, "fail")])
def test_python_under_rosetta_fails(translated, status):
    """A Python for Intel on Apple silicon cannot import MLX."""
    mac = examination(fake.M4_16, readings=Readings(translated=translated))

    assert only(check_python(mac)).status == status


# MLX ----------------------------------------------------------------------------------------------


def test_the_installed_mlx_is_the_wanted_one():
    """The versions of this environment are in the ranges that r1mac's own metadata gives."""
    linux = examination(fake.LINUX_64, device=Device(name="AMD EPYC", on_gpu=False))

    assert status_and_words(check_mlx, linux, f"mlx {installed_version('mlx')}", "processor (AMD EPYC)") == "ok"
    assert ">=" in required_versions("mlx")
    assert ">=" in required_versions("mlx-lm")
    assert required_versions("no-such-package") == ""


@pytest.mark.parametrize(
    ("version", "allowed"),
    [("0.32.4", True), ("0.32.10", True), ("0.32.3", False), ("0.33.0", False), ("0.33", False), ("0.32.5.dev1", True)],
)
def test_ranges_of_versions(version, allowed):
    """Numbers are compared as numbers."""
    assert allows("<0.33,>=0.32.4", version) is allowed
    assert allows("", version)


@pytest.mark.parametrize("versions", [{"mlx": "0.30.1", "mlx-lm": "0.32.2"}, {"mlx": None, "mlx-lm": "0.32.2"}])
def test_another_mlx_fails_with_the_command_that_helps(monkeypatch, versions):
    """A release that r1mac is not written for is named, with the pip command that gets the right one."""
    monkeypatch.setattr(computer, "installed_version", versions.get)
    monkeypatch.setattr(computer, "required_versions", lambda _package: "<0.33,>=0.32.4" if _package == "mlx" else "")

    mac = examination(fake.M4_16)

    assert status_and_words(check_mlx, mac, "-m pip install 'mlx<0.33,>=0.32.4'") == "fail"


def test_a_mac_whose_gpu_is_out_of_reach_fails():
    """Over ssh or in a sandbox MLX has no Metal device, and would compute on the processor."""
    blind = examination(fake.M4_16, device=Device(name="arm64", on_gpu=False))
    broken = examination(fake.M4_16, device="[metal::load_device] No Metal device available.")

    assert status_and_words(check_mlx, blind, "no Metal device", "at the screen") == "fail"
    assert status_and_words(check_mlx, broken, "does not start", "No Metal device available") == "fail"


def test_mlx_itself_is_asked():
    """MLX answers from a process of its own: on this computer, without a Mac's working set."""
    device = ask_device()

    assert isinstance(device, Device)
    assert device.name
    assert device.on_gpu == (device.working_set_bytes is not None)


# Power, heat, Thunderbolt -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readings", "status", "found"),
    [
        (Readings(power_source="mains", power_mode="automatic"), "ok", "mains, automatic mode"),
        (Readings(power_source="mains", power_mode="high"), "ok", "mains, High Power Mode"),
        (Readings(power_source="battery", power_mode="automatic"), "ok", "battery, automatic mode"),
        (Readings(power_source="battery", power_mode="low"), "warn", "battery, Low Power Mode"),
        (Readings(power_mode="low"), "warn", "Low Power Mode"),
        (Readings(power_source="battery"), "ok", "battery"),
    ],
)
def test_low_power_mode_is_warned_about(readings, status, found):
    """Only the mode that slows the GPU down is a warning."""
    result = only(check_power(examination(fake.M4_MAX_128, readings=readings)))

    assert (result.status, result.found) == (status, found)


@pytest.mark.parametrize(
    ("thermal", "status"), [("nominal", "ok"), ("moderate", "ok"), ("heavy", "warn"), ("trapping", "warn")]
)
def test_heat_that_slows_down_is_warned_about(thermal, status):
    """Moderate pressure is usual under load; above it macOS slows the Mac down."""
    assert only(check_heat(examination(fake.M4_MAX_128, readings=Readings(thermal=thermal)))).status == status


PORTS = (
    Port(name="1", gbit_per_s=80, peer="Mac Studio"),
    Port(name="2", gbit_per_s=120),
    Port(name="3", gbit_per_s=120),
)
SLOW = (Port(name="1", gbit_per_s=40), Port(name="2", gbit_per_s=40))


@pytest.mark.parametrize(
    ("thunderbolt", "status", "words"),
    [
        (
            Thunderbolt(ports=PORTS, rdma="enabled", rdma_devices=("rdma_en2",)),
            "ok",
            ("RDMA over rdma_en2", "Mac Studio"),
        ),
        (Thunderbolt(ports=PORTS, rdma="disabled"), "warn", ("rdma_ctl enable", "2 ports of 120 Gb/s")),
        (Thunderbolt(ports=PORTS), "warn", ("macOS 26.2",)),
        (Thunderbolt(ports=PORTS[1:], rdma="disabled"), "ok", ("2 ports of 120 Gb/s",)),  # nobody to talk to
        (Thunderbolt(ports=SLOW, rdma="enabled"), "ok", ("2 ports of 40 Gb/s", "no port of this Mac can do it")),
        (Thunderbolt(ports=(Port(name="1", gbit_per_s=None),)), "ok", ("1 port",)),
    ],
)
def test_rdma_is_missed_only_by_macs_that_are_joined(thunderbolt, status, words):
    """RDMA is a warning where two Macs are joined by a cable that could do it; otherwise it is a fact."""
    assert (
        status_and_words(check_thunderbolt, examination(fake.M3_ULTRA_512, thunderbolt=thunderbolt), *words) == status
    )


def test_a_mac_without_thunderbolt():
    """A Mac whose ports are not told is not warned about."""
    assert list(check_thunderbolt(examination(fake.M4_16, thunderbolt=Thunderbolt()))) == []
