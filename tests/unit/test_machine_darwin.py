"""A Mac, from text that real ones printed (tests/machines)."""

import logging
import platform
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.errors import UnsupportedMachine
from r1mac.machine import darwin
from r1mac.machine.base import HardwareProfile
from r1mac.machine.darwin import (
    IOREG,
    SYSCTL,
    VM_STAT,
    CommandResult,
    DarwinMachine,
    build_profile,
    default_wired_limit_bytes,
    default_wired_limit_source,
    parse_gpu_core_count,
    parse_sysctl,
    parse_vm_stat,
    run_command,
)
from r1mac.units import GB, GIB, MIB

MACHINES = Path(__file__).parents[1] / "machines"
ALL_MACHINES = sorted(folder.name for folder in MACHINES.iterdir() if folder.is_dir())
SOLD_GIB = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)
VALUES = {
    "hw.memsize": str(64 * GIB),
    "hw.model": "Mac17,8",
    "machdep.cpu.brand_string": "Apple M5 Pro",
    "hw.optional.arm64": "1",
    "sysctl.proc_translated": "0",
    "kern.osproductversion": "26.6.1",
    "iogpu.wired_limit_mb": "0",
}


def recorded(name: str, *, more_sysctl: str = "", platform_machine: str = "arm64") -> DarwinMachine:
    """Build the Mac of a folder. It knows three commands; any other, or any other argument, fails the test."""
    texts = {
        argv: path.read_text() if (path := MACHINES / name / file).exists() else ""
        for argv, file in ((SYSCTL, "sysctl.txt"), (IOREG, "ioreg.txt"), (VM_STAT, "vm_stat.txt"))
    }
    texts[SYSCTL] += more_sysctl
    return DarwinMachine(
        run=lambda argv: CommandResult(returncode=0, stdout=texts[argv]), platform_machine=platform_machine
    )


def profile_with(platform_machine: str = "arm64", **changes: str | None) -> HardwareProfile:
    """Build the profile of a 64 GB M5 Pro with some keys changed (``__`` is a dot) or, with None, missing."""
    values = VALUES | {key.replace("__", "."): value for key, value in changes.items()}
    return build_profile({key: value for key, value in values.items() if value is not None}, 20, platform_machine)


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


# The wired limit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory_gib", "macos_15_bytes", "macos_26_bytes"),
    [
        (8, 5726633984, 5726633984),
        (16, 11453251584, 12713115648),
        (24, 17179869184, 19069665280),
        (32, 22906503168, 26800603136),
        (36, 28991029248, 30150672384),
        (48, 38654705664, 40200896512),
        (64, 51539607552, 55662788608),
        (96, 77309411328, 83494174720),
        (128, 103079215104, 115448725504),
        (256, 223338299392, 223338299392),
        (512, 498216206336, 498216206336),
    ],
)
def test_default_limits_equal_published_ones(memory_gib, macos_15_bytes, macos_26_bytes):
    """The formula equals what Metal reported, byte for byte, on both families of macOS."""
    memory_bytes = memory_gib * GIB

    assert default_wired_limit_bytes(memory_bytes, 14) == macos_15_bytes
    assert default_wired_limit_bytes(memory_bytes, 15) == macos_15_bytes
    assert default_wired_limit_bytes(memory_bytes, 26) == macos_26_bytes
    assert default_wired_limit_bytes(memory_bytes, 27) == macos_26_bytes


@pytest.mark.parametrize(
    ("macos_major", "proven_gib"),
    [
        (14, {16, 24, 36, 64, 128, 256, 512}),
        (15, {16, 24, 36, 64, 128, 256, 512}),
        (26, {8, 16, 24, 32, 36, 48, 64, 96, 128, 512}),
        (27, set()),
        (28, set()),
    ],
)
def test_a_limit_without_a_capture_is_an_estimate(macos_major, proven_gib):
    """Only a memory size whose limit was shown on that macOS is called the default."""
    sources = {gib: default_wired_limit_source(gib * GIB, macos_major) for gib in (*SOLD_GIB, 7, 100, 1024)}

    assert {gib for gib, source in sources.items() if source == "default"} == proven_gib
    assert default_wired_limit_source(64 * GIB - 1, macos_major) == "estimated"


@given(st.sampled_from(SOLD_GIB), st.sampled_from(SOLD_GIB), st.sampled_from([14, 15, 26, 27]))
def test_more_memory_is_never_a_smaller_limit(one_gib, other_gib, macos_major):
    """Of two Macs on one macOS, the one with more memory never has the smaller default limit."""
    less, more = sorted((one_gib, other_gib))

    assert default_wired_limit_bytes(less * GIB, macos_major) <= default_wired_limit_bytes(more * GIB, macos_major)


@given(st.integers(1, 2**41), st.integers(0, 2**38), st.sampled_from([14, 15, 26, 27]))
def test_the_limit_grows_with_any_memory(memory_bytes, more_bytes, macos_major):
    """So it is for odd sizes too, but for one step down at 256 GiB, which lies between no two Macs."""
    below_256_gib = memory_bytes + more_bytes < 247 * GIB
    if not below_256_gib and memory_bytes < 256 * GIB:
        memory_bytes += 256 * GIB
    less = default_wired_limit_bytes(memory_bytes, macos_major)
    more = default_wired_limit_bytes(memory_bytes + more_bytes, macos_major)

    assert 0 < less <= more


@given(st.integers(GIB, 2**41), st.sampled_from([14, 15, 26, 27]))
def test_the_default_limit_leaves_memory(memory_bytes, macos_major):
    """The default is at least two thirds of the memory and never all of it."""
    limit_bytes = default_wired_limit_bytes(memory_bytes, macos_major)

    assert memory_bytes * 2 // 3 <= limit_bytes < memory_bytes


@pytest.mark.parametrize(
    ("wired_limit_mb", "limit_bytes", "source"),
    [
        ("57344", 60129542144, "override"),
        ("124518", 130566586368, "override"),
        ("1000000", 1000000 * MIB, "override"),  # above the memory: the kernel does not clamp
        ("1", MIB, "override"),
        ("0", 55662788608, "default"),
        (None, 55662788608, "default"),
        ("-1", 55662788608, "default"),
        ("26000 -> 26000", 55662788608, "default"),
        ("", 55662788608, "default"),
    ],
)
def test_a_set_limit_replaces_the_default(wired_limit_mb, limit_bytes, source):
    """iogpu.wired_limit_mb is MiB, passes through as it is, and 0 means the default rather than nothing."""
    profile = profile_with(iogpu__wired_limit_mb=wired_limit_mb)

    assert (profile.wired_limit_bytes, profile.wired_limit_source) == (limit_bytes, source)


@pytest.mark.parametrize(("wired_limit_mb", "warned"), [("65537", True), ("65536", False), ("0", False)])
def test_a_limit_above_the_memory_is_warned_about(caplog, wired_limit_mb, warned):
    """A limit that the kernel accepts and the memory cannot hold is told to the user, with the way back."""
    texts = {SYSCTL: f"hw.memsize: {64 * GIB}\niogpu.wired_limit_mb: {wired_limit_mb}\n", IOREG: ""}
    machine = DarwinMachine(run=lambda argv: CommandResult(returncode=0, stdout=texts[argv]), platform_machine="arm64")
    with caplog.at_level(logging.WARNING, logger=darwin.__name__):
        machine.profile()

    assert ("iogpu.wired_limit_mb=0" in caplog.text) == warned


def test_an_unknown_macos_gets_the_lower_estimate():
    """Without a version the fractions of the older macOS are taken, which are the lower ones."""
    profile = profile_with(kern__osproductversion=None)

    assert profile.macos is None
    assert (profile.wired_limit_bytes, profile.wired_limit_source) == (48 * GIB, "estimated")


@pytest.mark.parametrize(
    "changes", [{"machdep__cpu__brand_string": "Apple M1 (Virtual)"}, {"hw__model": "VirtualMac2,1"}]
)
def test_a_virtual_macs_limit_is_an_estimate(changes):
    """A virtual Mac is known by its chip or its model, and no capture proves its limit."""
    profile = profile_with(**changes)

    assert profile.virtual
    assert profile.wired_limit_source == "estimated"


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


# Parsers ------------------------------------------------------------------------------------------


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


# active 281638 + inactive 273368 + speculative 7622 + wired 136267 + compressor 184956
# - purgeable 21173 - file-backed 218388 = 644290 pages of 16384 bytes
USED_BYTES = 644_290 * 16_384


def test_used_memory_is_activity_monitors_sum():
    """Used memory leaves out what the kernel gives up without writing: purgeable pages and cached files."""
    text = (MACHINES / "m4-16gb-macos26" / "vm_stat.txt").read_text()

    assert parse_vm_stat(text) == USED_BYTES


def test_new_lines_of_vm_stat_change_nothing():
    """M5 Macs print lines about tagged memory, which are not counted."""
    text = (MACHINES / "m4-16gb-macos26" / "vm_stat.txt").read_text()
    tagged = (
        "Pages tagged:   5.\nPages tagged resident:   4.\nPages tag-storage:   3.\nBytes of compressed tags:   2.\n"
    )

    assert parse_vm_stat(text + tagged) == USED_BYTES


@pytest.mark.parametrize(
    ("text", "used_bytes"),
    [
        ("(page size of 4096 bytes)\nPages active: 10.\nPages wired down: 5.\n", 15 * 4096),
        ("(page size of 4096 bytes)\nPages active: 1.\nPages wired down: 1.\nFile-backed pages: 9.\n", 0),
        ("Pages active: 10.\nPages wired down: 5.\n", None),
        ("(page size of 4096 bytes)\nPages active: 10.\n", None),
        ("", None),
    ],
)
def test_vm_stat_without_its_main_lines_is_unknown(text, used_bytes):
    """A sum is made where page size, active and wired pages are there, and is never negative."""
    assert parse_vm_stat(text) == used_bytes


def test_available_memory_is_what_is_not_used():
    """Available memory is all memory less the used."""
    assert recorded("m4-16gb-macos26").available_memory_bytes() == 16 * GIB - USED_BYTES


def test_available_memory_without_vm_stat():
    """Where vm_stat says nothing, psutil is asked, and a number comes out all the same."""
    assert recorded("m2-max-64gb-macos26.6.2").available_memory_bytes() > 0


@given(st.text() | st.lists(st.sampled_from(["a.b: 1", "a.b", ": 1", "x", "hw.memsize: 9", "=", "\0"])).map("\n".join))
def test_parsers_survive_any_text(text):
    """No output of a command stops r1mac: what is not understood is unknown."""
    values = parse_sysctl(text)
    gpu_core_count = parse_gpu_core_count(text)
    used_bytes = parse_vm_stat(text)

    assert all("." in key for key in values)
    assert gpu_core_count is None or gpu_core_count > 0
    assert used_bytes is None or used_bytes >= 0


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


def test_a_command_runs_in_plain_english_and_with_nothing_inherited(monkeypatch):
    """Commands get LC_ALL=C, and not SYSTEM_VERSION_COMPAT, which would make macOS lie about itself."""
    monkeypatch.setenv("SYSTEM_VERSION_COMPAT", "1")
    code = "import os, sys; print(os.environ.get('LC_ALL'), os.environ.get('SYSTEM_VERSION_COMPAT')); sys.exit(3)"
    result = run_command((sys.executable, "-c", code))

    assert result == CommandResult(returncode=3, stdout="C None\n", stderr="")


def test_a_missing_command_is_a_result():
    """A computer without ioreg has an unknown GPU, not an error."""
    result = run_command(("/no/such/ioreg",))

    assert (result.returncode, result.stdout) == (127, "")
    assert "/no/such/ioreg" in result.stderr


def test_broken_text_is_a_result():
    """Bytes that are no UTF-8 are replaced, since a name in ioreg's answer may hold any."""
    code = r"import sys; sys.stdout.buffer.write(b'\xff\x00ok')"

    assert run_command((sys.executable, "-c", code)).stdout == "�\0ok"


def test_a_hanging_command_is_a_result(monkeypatch):
    """A command that does not end is given up."""
    monkeypatch.setattr(darwin, "COMMAND_SECONDS", 0.2)
    result = run_command((sys.executable, "-c", "import time; time.sleep(60)"))

    assert (result.returncode, result.stdout) == (124, "")
