"""A computer that is no Mac."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.machine.generic import (
    GenericMachine,
    Memory,
    parse_cgroup_bytes,
    parse_file_cache_bytes,
    parse_meminfo,
    read_memory,
    usable_memory_bytes,
)
from r1mac.units import GIB

CPUINFO = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9R14\nstepping\t: 1\nmodel name\t: other\n"


def machine(root: Path, total_gib: int = 64, available_gib: int = 50, **files: str) -> GenericMachine:
    """Build a computer below *root*; a file's ``__`` is a folder's slash and ``_of_`` a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_of_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    memory = Memory(total_bytes=total_gib * GIB, available_bytes=available_gib * GIB)
    return GenericMachine(root=root, memory=lambda: memory)


def in_container(root: Path, limit: str, **files: str) -> GenericMachine:
    """Build a computer of 64 GiB, 50 of them available, whose container may use *limit*."""
    group = {f"sys__fs__cgroup__memory_of_{name}": text for name, text in {"max": limit, **files}.items()}
    return machine(root, **group)


def test_profile_of_a_computer_that_is_no_mac(tmp_path):
    """All memory but a tenth can hold the model, and nothing is claimed about GPU, bandwidth or macOS."""
    profile = machine(tmp_path, proc__cpuinfo=CPUINFO).profile()

    assert profile.chip == "AMD EPYC 9R14"
    assert (profile.system, profile.macos, profile.virtual) == ("other", None, False)
    assert (profile.gpu_core_count, profile.memory_bandwidth_bytes_per_s) == (None, None)
    assert profile.memory_bytes == 64 * GIB
    assert profile.wired_limit_bytes == 64 * GIB - 64 * GIB // 10
    assert profile.wired_limit_source == "memory"
    assert not profile.fused_attention


@pytest.mark.parametrize("cpuinfo", ["", "processor : 0\n", "model name\t:\n", "\xff\x00"])
def test_a_processor_without_a_name_still_has_one(tmp_path, cpuinfo):
    """Where /proc/cpuinfo names no model, as on ARM, the chip is named by Python's own knowledge."""
    assert machine(tmp_path, proc__cpuinfo=cpuinfo).profile().chip


@pytest.mark.parametrize(
    ("memory_gib", "usable_gib"),
    [
        (1, 0.5),  # never below half
        (3, 1.5),
        (4, 2),
        (8, 6),  # 2 GiB stay
        (20, 18),
        (64, 57.6),  # a tenth stays
        (512, 460.8),
    ],
)
def test_usable_memory(memory_gib, usable_gib):
    """A computer keeps 2 GiB or a tenth of its memory for itself, but never more than half."""
    assert usable_memory_bytes(memory_gib * GIB) == pytest.approx(usable_gib * GIB, abs=1)


@given(st.integers(min_value=0, max_value=2**50), st.integers(min_value=0, max_value=2**40))
def test_more_memory_is_never_less_to_use(memory_bytes, more_bytes):
    """More memory never means less that a model may use, and never more than there is."""
    less, more = usable_memory_bytes(memory_bytes), usable_memory_bytes(memory_bytes + more_bytes)

    assert less <= more
    assert memory_bytes // 2 <= less <= memory_bytes


@pytest.mark.parametrize(
    ("limit", "memory_gib"),
    [
        (f"{16 * GIB}\n", 16),
        (f"{128 * GIB}\n", 64),  # a limit above the memory is none
        ("max\n", 64),
        ("", 64),
        ("0\n", 64),
        ("-1\n", 64),
    ],
)
def test_a_containers_limit_is_its_memory(tmp_path, limit, memory_gib):
    """In a container with less memory than the computer, the container's limit is planned with."""
    profile = in_container(tmp_path, limit).profile()

    assert profile.memory_bytes == memory_gib * GIB
    assert profile.wired_limit_bytes < memory_gib * GIB


def test_cached_files_of_a_container_are_available(tmp_path):
    """What a container holds of files is counted as available, since it is given back on demand."""
    stat = f"anon {3 * GIB}\nfile {9 * GIB}\ninactive_anon 5\nactive_file {GIB}\ninactive_file {8 * GIB}\n"
    container = in_container(tmp_path, str(16 * GIB), current=str(12 * GIB), stat=stat)

    assert container.available_memory_bytes() == 13 * GIB  # 16 - (12 - 1 - 8)


def test_a_container_cannot_have_what_the_computer_lacks(tmp_path):
    """A container's available memory is no more than the computer's."""
    assert in_container(tmp_path, str(60 * GIB)).available_memory_bytes() == 50 * GIB


def test_an_overfull_container_has_nothing_left(tmp_path):
    """A container that holds more than its limit has no memory available, rather than less than none."""
    assert in_container(tmp_path, str(8 * GIB), current=str(9 * GIB)).available_memory_bytes() == 0


def test_available_memory_without_a_container(tmp_path):
    """Outside a container the computer's own number is told."""
    assert machine(tmp_path).available_memory_bytes() == 50 * GIB


def test_linux_tells_its_memory_itself(tmp_path):
    """Where there is a /proc/meminfo, its numbers are taken and psutil is not asked."""
    meminfo = "MemTotal:       32768000 kB\nMemFree:         1000000 kB\nMemAvailable:   16384000 kB\nHugePages_Total:       0\n"
    linux = machine(tmp_path, proc__meminfo=meminfo)

    assert linux.profile().memory_bytes == 32_768_000 * 1024
    assert linux.available_memory_bytes() == 16_384_000 * 1024


@pytest.mark.parametrize(
    "meminfo", ["", "MemTotal: 0 kB\nMemAvailable: 0 kB\n", "MemTotal: 5 kB\n", "MemAvailable: 5 kB\n"]
)
def test_half_a_meminfo_is_none(meminfo):
    """A /proc/meminfo without both numbers, as a very old kernel's, is not believed."""
    assert parse_meminfo(meminfo) is None


def test_this_computer_has_memory():
    """The real reading, of whatever computer runs the tests, is a sane pair of numbers."""
    memory = read_memory()
    profile = GenericMachine().profile()

    assert 0 < memory.available_bytes <= memory.total_bytes
    assert 0 < profile.wired_limit_bytes < profile.memory_bytes <= memory.total_bytes


@given(st.text())
def test_parsers_survive_any_text(text):
    """No content of a system's file stops r1mac."""
    limit_bytes = parse_cgroup_bytes(text)
    memory = parse_meminfo(text)

    assert limit_bytes is None or limit_bytes > 0
    assert memory is None or memory.total_bytes > 0
    assert parse_file_cache_bytes(text) >= 0
