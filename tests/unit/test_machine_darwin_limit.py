"""How much a Mac's GPU may hold: set, default or estimated."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.machine import darwin
from r1mac.machine.command import CommandResult
from r1mac.machine.darwin import (
    IOREG,
    SYSCTL,
    DarwinMachine,
    default_wired_limit_bytes,
    default_wired_limit_source,
)
from r1mac.units import GIB, MIB
from tests.recorded import profile_with

SOLD_GIB = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)


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


@pytest.mark.parametrize(
    ("memory_gib", "wired_limit_mb", "warned"),
    [
        (64, "1000000", True),
        (64, "61441", True),  # less than 4 GiB remain
        (64, "61440", False),
        (64, "0", False),
        (8, "0", False),  # macOS's own limit leaves a small Mac less than that
        (8, "5461", False),
        (8, "5462", True),
    ],
)
def test_a_limit_that_starves_macos_is_warned_about_once(caplog, memory_gib, wired_limit_mb, warned):
    """A limit that the kernel accepts and the Mac cannot bear is told in one sentence, with the way back."""
    texts = {SYSCTL: f"hw.memsize: {memory_gib * GIB}\niogpu.wired_limit_mb: {wired_limit_mb}\n", IOREG: ""}
    machine = DarwinMachine(run=lambda argv: CommandResult(returncode=0, stdout=texts[argv]), platform_machine="arm64")
    with caplog.at_level(logging.WARNING, logger=darwin.__name__):
        machine.profile()
        machine.profile()

    assert caplog.text.count("sudo sysctl iogpu.wired_limit_mb=0") == warned


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
