"""The state of a Mac, from text that real ones printed (tests/captures, tests/machines)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.machine.command import CommandResult
from r1mac.machine.darwin import DarwinMachine, used_bytes
from r1mac.machine.darwin_readings import (
    MEMORY_SYSCTL,
    STATE_SYSCTL,
    THERMAL,
    parse_boot,
    parse_memory_state,
    parse_page_bytes,
    parse_power_mode,
    parse_power_source,
    parse_sysctl,
    parse_thermal,
)
from r1mac.machine.readings import Boot, MemoryState, Readings
from r1mac.units import GIB, MIB
from tests.recorded import CAPTURES, MACHINES, recorded


def capture(name: str) -> str:
    """Return a file of tests/captures."""
    return (CAPTURES / name).read_text(encoding="utf-8")


# Memory -------------------------------------------------------------------------------------------


def test_a_mac_that_is_short_of_memory():
    """Pressure and swap are read as a Mac printed them, the note on encryption included."""
    machine = recorded("m5-max", "unnamed-48gb-under-load")

    assert machine.memory_state() == MemoryState(
        pressure="warn", swap_used_bytes=round(11625.69 * MIB), swap_total_bytes=13312 * MIB
    )
    assert machine.readings().memory == machine.memory_state()


def test_a_calm_mac():
    """A Mac that is not short of memory says so, although it has swapped some."""
    state = recorded("m5-max", "unnamed-calm").memory_state()

    assert state == MemoryState(pressure="normal", swap_used_bytes=100 * MIB, swap_total_bytes=2048 * MIB)


@pytest.mark.parametrize(
    ("text", "used_bytes", "total_bytes"),
    [
        ("total = 1024,00M  used = 100,50M  free = 923,50M  (encrypted)", 100 * MIB + MIB // 2, GIB),
        ("total = 2048.00M  used = 100.00M  free = 1948.00M", 100 * MIB, 2 * GIB),
        ("total = 2.00G  used = 1.50G  free = 512.00M", 3 * GIB // 2, 2 * GIB),
        ("total = 0.00M  used = 0.00M  free = 0.00M  (encrypted)", 0, 0),
        ("total = 64M  used = 512K", 512 * 1024, 64 * MIB),
        ("used = lots", None, None),
        ("", None, None),
    ],
)
def test_swap_in_every_notation(text, used_bytes, total_bytes):
    """A decimal comma, other units and a missing note on encryption do not matter."""
    state = parse_memory_state({"vm.swapusage": text})

    assert (state.swap_used_bytes, state.swap_total_bytes) == (used_bytes, total_bytes)


@pytest.mark.parametrize(
    ("level", "pressure"), [("1", "normal"), ("2", "warn"), ("4", "critical"), ("3", None), ("", None)]
)
def test_the_kernels_levels_of_pressure(level, pressure):
    """The levels are 1, 2 and 4; another is unknown rather than guessed at."""
    assert parse_memory_state({"kern.memorystatus_vm_pressure_level": level}).pressure == pressure


def test_pressure_costs_one_sysctl():
    """What is asked between two tokens starts one process."""
    asked = []

    def run(argv):
        asked.append(argv)
        return CommandResult(returncode=0, stdout="kern.memorystatus_vm_pressure_level: 4\n")

    assert DarwinMachine(run=run, platform_machine="arm64").memory_state().pressure == "critical"
    assert asked == [MEMORY_SYSCTL]


# active 281638 + inactive 273368 + speculative 7622 + wired 136267 + compressor 184956
# - purgeable 21173 - file-backed 218388 = 644290 pages of 16384 bytes
USED_BYTES = 644_290 * 16_384


def test_pages_of_a_recorded_mac():
    """Every line of vm_stat is read, the one in quotes as well."""
    pages = parse_page_bytes((MACHINES / "m4-16gb-macos26" / "vm_stat.txt").read_text())

    assert pages["Pages wired down"] == 136_267 * 16_384
    assert pages["Translation faults"] == 148_621_725 * 16_384
    assert len(pages) == 22
    assert used_bytes(pages) == USED_BYTES  # Activity Monitor's sum: without purgeable pages and cached files


def test_new_lines_of_vm_stat_change_nothing():
    """M5 Macs print lines about tagged memory, which are not counted."""
    text = (MACHINES / "m4-16gb-macos26" / "vm_stat.txt").read_text()
    tagged = (
        "Pages tagged:   5.\nPages tagged resident:   4.\nPages tag-storage:   3.\nBytes of compressed tags:   2.\n"
    )

    assert used_bytes(parse_page_bytes(text + tagged)) == USED_BYTES


@pytest.mark.parametrize(
    ("text", "expected_bytes"),
    [
        ("(page size of 4096 bytes)\nPages active: 10.\nPages wired down: 5.\n", 15 * 4096),
        ("(page size of 4096 bytes)\nPages active: 1.\nPages wired down: 1.\nFile-backed pages: 9.\n", 0),
        ("Pages active: 10.\nPages wired down: 5.\n", None),
        ("(page size of 4096 bytes)\nPages active: 10.\n", None),
        ("", None),
    ],
)
def test_vm_stat_without_its_main_lines_is_unknown(text, expected_bytes):
    """A sum is made where page size, active and wired pages are there, and is never negative."""
    assert used_bytes(parse_page_bytes(text)) == expected_bytes


def test_available_memory_is_what_is_not_used():
    """Available memory is all memory less the used."""
    assert recorded("m4-16gb-macos26").available_memory_bytes() == 16 * GIB - USED_BYTES


def test_available_memory_without_vm_stat():
    """Where vm_stat says nothing, psutil is asked, and a number comes out all the same."""
    assert recorded("m2-max-64gb-macos26.6.2").available_memory_bytes() > 0


# Power and heat -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        (" lowpowermode         0\n womp 0\n", "automatic"),
        (" lowpowermode         1\n", "low"),
        (" lowpowermode         0\n highpowermode        1\n", "high"),
        (" lowpowermode         1\n highpowermode        0\n", "low"),
        (" powermode            0\n", "automatic"),
        (" powermode            1\n", "low"),
        (" powermode            2\n", "high"),
        (" lowpowermode         1\n powermode            0\n", "automatic"),  # the newer word counts
        (" powermode            7\n", None),
        (" Sleep On Power Button 1\n", None),
        ("", None),
    ],
)
def test_power_modes_in_every_notation(text, mode):
    """Three spellings of the mode are understood, and none of them is no mode."""
    assert parse_power_mode(text) == mode


def test_power_of_recorded_macs():
    """Real answers of pmset, with names of several words and notes behind the values, give the mode."""
    assert parse_power_mode(capture("macbook-air/pmset.txt")) == "automatic"
    assert parse_power_mode(capture("unnamed-high-power/pmset.txt")) == "high"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (capture("macbook-on-mains/pmset_batt.txt"), "mains"),
        ("Now drawing from 'AC Power'\n", "mains"),  # a desktop has no line of a battery
        ("Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t19%; discharging\n", "battery"),
        ("Now drawing from 'UPS Power'\n", "battery"),
        ("", None),
    ],
)
def test_power_sources(text, source):
    """Mains and battery are told apart, on a desktop too."""
    assert parse_power_source(text) == source


@pytest.mark.parametrize(
    ("text", "thermal"),
    [
        ("com.apple.system.thermalpressurelevel 0\n", "nominal"),
        ("com.apple.system.thermalpressurelevel 1\n", "moderate"),
        ("com.apple.system.thermalpressurelevel 2\n", "heavy"),
        ("com.apple.system.thermalpressurelevel 4\n", "sleeping"),
        ("com.apple.system.thermalpressurelevel 9\n", None),
        ("com.apple.system.thermalpressurelevel: not found\n", None),
        ("", None),
    ],
)
def test_levels_of_heat(text, thermal):
    """The last word is the level."""
    assert parse_thermal(text) == thermal


# Which Mac, which start ---------------------------------------------------------------------------


def test_a_mac_that_says_nothing_has_unknown_readings():
    """Every reading may be missing."""
    machine = DarwinMachine(run=lambda argv: CommandResult(returncode=1, stdout=""), platform_machine="arm64")

    assert machine.readings() == Readings(translated=False)
    assert machine.boot() == Boot()
    assert machine.thunderbolt().ports == ()


def test_readings_of_several_captures():
    """Model, memory, power and heat come together."""
    machine = recorded(
        "m1-mini-8gb-macos26.3.2",
        "unnamed-calm",
        "unnamed-high-power",
        "macbook-on-mains",
        answers={THERMAL: "com.apple.system.thermalpressurelevel 2\n"},
    )
    readings = machine.readings()

    assert readings.model == "Macmini9,1"
    assert (readings.power_source, readings.power_mode, readings.thermal) == ("mains", "high", "heavy")


@pytest.mark.parametrize(
    ("more_sysctl", "platform_machine", "translated"),
    [
        ("hw.optional.arm64: 1\nsysctl.proc_translated: 0\n", "arm64", False),
        ("hw.optional.arm64: 1\nsysctl.proc_translated: 1\n", "arm64", True),
        ("hw.optional.arm64: 1\nsysctl.proc_translated: 0\n", "x86_64", True),  # of the sysctl process only
        ("hw.optional.arm64: 1\n", "x86_64", True),
    ],
)
def test_rosetta_is_seen(more_sysctl, platform_machine, translated):
    """A Python for Intel is seen also where the sysctl process itself is native."""
    machine = recorded("m5-max", more_sysctl=more_sysctl, platform_machine=platform_machine)

    assert machine.readings().translated is translated


def test_an_intel_mac_is_not_translated():
    """An Intel Python on an Intel Mac is native."""
    assert recorded("intel-macbook-pro", platform_machine="x86_64").readings().translated is False


BOOT = "kern.bootsessionuuid: 7EDF3EA8-1F47-4E07-A28D-C02488B3E469\nkern.boottime: { sec = 1762000000, usec = 237429 } Sat Nov  1 12:26:40 2025\n"


def test_a_start_has_a_name_and_a_time():
    """Both are read; the text of the date is not."""
    boot = parse_boot(parse_sysctl(BOOT))

    assert boot == Boot(session="7EDF3EA8-1F47-4E07-A28D-C02488B3E469", started_at_s=1_762_000_000)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (Boot(session="A", started_at_s=5), Boot(session="A", started_at_s=500), True),  # the clock was set
        (Boot(session="A", started_at_s=5), Boot(session="B", started_at_s=5), False),
        (Boot(started_at_s=1000), Boot(session="B", started_at_s=1010), True),
        (Boot(started_at_s=1000), Boot(started_at_s=1090), False),
        (Boot(), Boot(session="B", started_at_s=5), True),
        (Boot(session="A"), Boot(started_at_s=5), True),
    ],
)
def test_starts_are_compared_by_name_then_by_time(one, other, same):
    """A clock that is set makes no new start, and what is unknown is not taken for one."""
    assert one.is_same_as(other) is same
    assert other.is_same_as(one) is same


# Any text -----------------------------------------------------------------------------------------


def test_noise_between_sysctls_lines_is_left_out():
    """A missing key's complaint, or any other line, neither becomes a key nor hides one."""
    text = (
        "sysctl: unknown oid 'iogpu.rsrc_limit'\n"
        "hw.memsize: 68719476736\n"
        "\n"
        "second level name iogpu in iogpu.wired_limit_mb is invalid\n"
        "vm.swapusage: total = 1024,00M  used = 100,00M  free = 924,00M  (encrypted)\n"
        "iogpu.wired_lwm_mb    = 0\n"
    )

    assert parse_sysctl(text) == {
        "hw.memsize": "68719476736",
        "vm.swapusage": "total = 1024,00M  used = 100,00M  free = 924,00M  (encrypted)",
        "iogpu.wired_lwm_mb": "0",
    }


_PIECES = st.sampled_from(["a.b: 1", "hw.memsize: 9", "=", "\0", "Pages active: 3.", "(page size of 4096 bytes)", " 4"])


@given(st.text() | st.lists(_PIECES).map("\n".join))
def test_parsers_survive_any_text(text):
    """No output of a command stops r1mac: what is not understood is unknown."""
    values = parse_sysctl(text)
    used = used_bytes(parse_page_bytes(text))

    assert all("." in key for key in values)
    assert used is None or used >= 0
    assert parse_power_mode(text) in {None, "low", "automatic", "high"}
    assert parse_power_source(text) in {None, "mains", "battery"}
    assert parse_thermal(text) in {None, "nominal", "moderate", "heavy", "trapping", "sleeping"}


@given(st.dictionaries(st.sampled_from([*STATE_SYSCTL[1:], "kern.boottime", "kern.bootsessionuuid"]), st.text()))
def test_any_values_are_a_state(values):
    """Whatever the keys hold, a state comes out."""
    state = parse_memory_state(values)

    assert state.swap_used_bytes is None or state.swap_used_bytes >= 0
    assert parse_boot(values).is_same_as(parse_boot(values))
