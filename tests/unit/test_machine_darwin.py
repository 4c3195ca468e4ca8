"""A Mac's facts, from text that real ones printed (tests/machines)."""

import platform

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.errors import UnsupportedMachine
from r1mac.machine.base import HardwareProfile
from r1mac.machine.command import CommandResult
from r1mac.machine.darwin import IOREG, SYSCTL, DarwinMachine, build_profile, parse_gpu_core_count
from r1mac.machine.darwin_readings import VM_STAT, parse_sysctl
from r1mac.units import GB, GIB
from tests.recorded import ALL_MACHINES, MACHINES, VALUES, profile_with, recorded


def profile_or_refusal(
    values: dict[str, str], gpu_core_count: int | None, platform_machine: str
) -> HardwareProfile | UnsupportedMachine:
    """Return what build_profile returns, or the refusal that it raises; anything else fails the test."""
    try:
        return build_profile(values, gpu_core_count, platform_machine)
    except UnsupportedMachine as refusal:
        return refusal


# Recorded Macs ------------------------------------------------------------------------------------

RECORDED = {
    # folder: chip, macOS, GPU cores, GiB, limit in bytes, its source, GB/s
    "m1-mini-8gb-macos26.3.2": ("Apple M1", (26, 3, 2), None, 8, 5726633984, "default", 68.25),
    "m2-max-64gb-macos26.6.2": ("Apple M2 Max", (26, 6, 2), None, 64, 55662788608, "default", 400),
    "m3-max-36gb-macos26": ("Apple M3 Max", (26,), None, 36, 30150672384, "default", 300),
    "m3-max-96gb-macos26": ("Apple M3 Max", (26,), None, 96, 83494174720, "default", 300),
    "m3-ultra-96gb": ("Apple M3 Ultra", None, None, 96, 77309411328, "estimated", 819),
    "m3-ultra-256gb-macos15": ("Apple M3 Ultra", (15,), None, 256, 223338299392, "default", 819),
    "m3-ultra-512gb-macos26": ("Apple M3 Ultra", (26,), None, 512, 498216206336, "default", 819),
    "m4-16gb-macos15.6": ("Apple M4", (15, 6), None, 16, 11453251584, "default", 120),
    "m4-16gb-macos26": ("Apple M4", (26,), 10, 16, 12713115648, "default", 120),
    "m4-pro-48gb-macos26": ("Apple M4 Pro", (26,), None, 48, 40200896512, "default", 273),
    "m4-max-36gb-macos15.7.7": ("Apple M4 Max", (15, 7, 7), None, 36, 28991029248, "default", 410),
    "m4-max-128gb-macos15": ("Apple M4 Max", (15,), None, 128, 103079215104, "default", 546),
    "m4-max-128gb-macos26.2": ("Apple M4 Max", (26, 2), None, 128, 115448725504, "default", 546),
    "m5-24gb-macos26.1": ("Apple M5", (26, 1), None, 24, 19069665280, "default", 153),
    "m5-pro-64gb-macos26.6.1": ("Apple M5 Pro", (26, 6, 1), None, 64, 55662788608, "default", 307),
    "m5-max-64gb-override": ("Apple M5 Max", None, None, 64, 60129542144, "override", 614),
    "m5-max-128gb-override": ("Apple M5 Max", None, None, 128, 130566586368, "override", 614),
    "m6-mini-32gb-macos27.0.1": ("Apple M6", (27, 0, 1), 12, 32, 26800603136, "estimated", 170),
    "unnamed-48gb-override": ("Apple silicon", None, None, 48, 36 * GIB, "override", None),
}
WITHOUT_MEMORY = ("github-virtual-m1", "m1-pro", "m3-pro", "m5-max", "m5-pro-16-gpu-cores")


def test_every_recorded_mac_is_tested():
    """No folder of tests/machines is without a test."""
    assert sorted({*RECORDED, *WITHOUT_MEMORY, "intel-macbook-pro"}) == ALL_MACHINES


@pytest.mark.parametrize(("name", "facts"), RECORDED.items(), ids=RECORDED)
def test_profile_of_a_recorded_mac(name, facts):
    """A real Mac's text becomes its facts, with the limit that Metal reported there to the page."""
    chip, macos, gpu_core_count, memory_gib, wired_limit_bytes, source, gb_per_s = facts
    profile = recorded(name).profile()

    assert profile == HardwareProfile(
        chip=chip,
        system="macos",
        macos=macos,
        gpu_core_count=gpu_core_count,
        memory_bytes=memory_gib * GIB,
        wired_limit_bytes=wired_limit_bytes,
        wired_limit_source=source,
        memory_bandwidth_bytes_per_s=None if gb_per_s is None else round(gb_per_s * GB),
        virtual=False,
    )


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_a_mac_that_hides_its_memory_is_refused(name):
    """Without hw.memsize nothing can be planned, and the user is told which command to try."""
    with pytest.raises(UnsupportedMachine, match="how much memory") as raised:
        recorded(name).profile()

    assert "/usr/sbin/sysctl hw.memsize" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("name", "memory_gib", "chip", "gb_per_s", "virtual"),
    [
        ("github-virtual-m1", 7, "Apple M1 (Virtual)", 68.25, True),
        ("m1-pro", 16, "Apple M1 Pro", 200, False),
        ("m3-pro", 18, "Apple M3 Pro", 153.6, False),
        ("m5-max", 36, "Apple M5 Max", 460, False),
        ("m5-pro-16-gpu-cores", 48, "Apple M5 Pro", 307, False),
    ],
)
def test_partial_captures_need_only_the_memory(name, memory_gib, chip, gb_per_s, virtual):
    """Every key but the memory may be missing."""
    profile = recorded(name, more_sysctl=f"hw.memsize: {memory_gib * GIB}\n").profile()

    assert (profile.chip, profile.virtual) == (chip, virtual)
    assert profile.memory_bandwidth_bytes_per_s == round(gb_per_s * GB)
    assert profile.wired_limit_source == "estimated"


@pytest.mark.parametrize("name", ALL_MACHINES)
def test_every_recorded_line_is_understood(name):
    """Each line of a recorded sysctl.txt is one key and its value, however many core levels there are."""
    text = (MACHINES / name / "sysctl.txt").read_text()
    values = parse_sysctl(text)

    assert len(values) == len(text.splitlines())
    assert all(values.values())


def test_three_core_levels():
    """An M6 has three levels of cores, and their names are read as they stand."""
    values = parse_sysctl((MACHINES / "m6-mini-32gb-macos27.0.1" / "sysctl.txt").read_text())

    assert [values[f"hw.perflevel{level}.name"] for level in range(3)] == ["Super", "Performance", "Efficiency"]


# What cannot be used ------------------------------------------------------------------------------


def test_an_intel_mac_is_refused():
    """An Intel Mac is told so by its processor's name."""
    with pytest.raises(UnsupportedMachine, match=r"Intel processor \(Intel\(R\) Core\(TM\) i9-9980HK") as raised:
        recorded("intel-macbook-pro", platform_machine="x86_64").profile()

    assert "M1" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("platform_machine", "changes"),
    [
        ("x86_64", {}),
        ("x86_64", {"hw__optional__arm64": None}),
        ("x86_64", {"hw__optional__arm64": None, "machdep__cpu__brand_string": "VirtualApple @ 2.50GHz"}),
        ("x86_64", {"sysctl__proc_translated": "1"}),
        ("x86_64", {"sysctl__proc_translated": None}),
        ("arm64", {"sysctl__proc_translated": "1"}),
        ("x86_64", {"sysctl__proc_translated": "1", "hw__optional__arm64": None, "machdep__cpu__brand_string": None}),
    ],
)
def test_python_under_rosetta_is_refused(platform_machine, changes):
    """A Python for Intel on Apple silicon is refused as such, not as an Intel Mac."""
    with pytest.raises(UnsupportedMachine, match="under Rosetta") as raised:
        profile_with(platform_machine, **changes)

    assert "arm64 Python" in str(raised.value.hint)


@pytest.mark.parametrize("version", ["13.7.8", "12.0", "10.16", "11"])
def test_macos_before_14_is_refused(version):
    """A macOS before 14 has no iogpu key and no MLX, and the user is told the version."""
    with pytest.raises(UnsupportedMachine, match=f"macOS {version}; MLX needs macOS 14 or later") as raised:
        profile_with(kern__osproductversion=version, iogpu__wired_limit_mb=None)

    assert "Software Update" in str(raised.value.hint)


@pytest.mark.parametrize("memory", [None, "", "0", "-5", "lots", "9" * 5000])
def test_a_memory_that_is_no_number_is_refused(memory):
    """A memory of nothing or of no number is refused rather than planned with."""
    with pytest.raises(UnsupportedMachine, match="how much memory"):
        profile_with(hw__memsize=memory)


def test_every_refusal_has_its_exit_code():
    """An unsupported Mac ends r1mac with 8."""
    assert UnsupportedMachine.exit_code == 8


def test_a_chip_of_next_year_has_a_profile():
    """An unknown chip has all facts but the bandwidth."""
    profile = profile_with(machdep__cpu__brand_string="Apple M7 Max")

    assert profile.chip == "Apple M7 Max"
    assert profile.memory_bandwidth_bytes_per_s is None
    assert profile.wired_limit_bytes == 55662788608


@pytest.mark.parametrize(
    ("version", "macos"),
    [("26.6.1", (26, 6, 1)), ("26", (26,)), ("14.0", (14, 0)), ("27.0 beta", (27, 0)), ("", None), ("beta", None)],
)
def test_versions_are_integers(version, macos):
    """A version is a tuple of integers, so that 26.10 is after 26.9."""
    assert profile_with(kern__osproductversion=version).macos == macos


# GPU cores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('"gpu-core-count" = 10', 10),
        ('    "gpu-core-count"=80\n', 80),
        ('{"gpu-core-count"=40,"model"="x"}', 40),
        ('"gpu-core-count" = 0', None),
        ('"gpu-core-count" = 123456789', None),
        ('"gpu-core-count-max" = 8', None),
        ('"model" = "Apple M4"', None),
        ("", None),
    ],
)
def test_gpu_core_count(text, count):
    """The cores are read wherever ioreg prints them, and are unknown where it does not."""
    assert parse_gpu_core_count(text) == count


# Any text -----------------------------------------------------------------------------------------

_any_value = st.text() | st.integers().map(str) | st.sampled_from(["1", "0", "26.1", "13.0", "Apple M1", "x86_64"])


@given(
    st.dictionaries(st.sampled_from(sorted(VALUES)), _any_value),
    st.none() | st.integers(1, 100),
    st.sampled_from(["arm64", "x86_64", ""]),
)
def test_any_values_make_a_profile_or_a_refusal(values, gpu_core_count, platform_machine):
    """Whatever the keys hold, the end is a profile with a limit above 0 or a refusal with a hint."""
    outcome = profile_or_refusal(values, gpu_core_count, platform_machine)

    assert outcome.hint if isinstance(outcome, UnsupportedMachine) else outcome.wired_limit_bytes > 0


@given(st.fixed_dictionaries({key: st.just(value) | _any_value for key, value in VALUES.items()}))
def test_a_changed_key_makes_a_profile_or_a_refusal(values):
    """So it does when only some keys of a real Mac are nonsense."""
    outcome = profile_or_refusal(values, 20, "arm64")

    assert outcome.hint if isinstance(outcome, UnsupportedMachine) else outcome.wired_limit_bytes > 0


# Running commands ---------------------------------------------------------------------------------


def test_a_profile_costs_two_commands():
    """One sysctl and one ioreg, by absolute path, are all that a profile runs."""
    asked: list[tuple[str, ...]] = []

    def run(argv: tuple[str, ...]) -> CommandResult:
        asked.append(argv)
        return CommandResult(returncode=1, stdout="hw.memsize: 17179869184\n", stderr="sysctl: unknown oid")

    DarwinMachine(run=run, platform_machine="arm64").profile()

    assert asked == [SYSCTL, IOREG]
    assert all(argv[0].startswith("/usr/") for argv in (*asked, VM_STAT))


def test_python_itself_says_what_it_was_built_for(monkeypatch):
    """Without an argument, the machine is the one that Python runs as."""
    assert DarwinMachine()._platform_machine == platform.machine()
