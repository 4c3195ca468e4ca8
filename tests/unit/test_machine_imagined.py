"""A Mac that somebody thinks of, from their words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.errors import UnsupportedMachine
from r1mac.machine import fake
from r1mac.machine.chips import load_chips
from r1mac.machine.imagined import mac, parse_mac
from r1mac.units import GB, GIB


@pytest.mark.parametrize(
    ("text", "chip", "gpu_core_count", "memory_gib", "macos"),
    [
        ("m3 ultra 512gb", "Apple M3 Ultra", 80, 512, "26.6.2"),  # the 60-core one ends at 256
        ("m3 ultra 96gb", "Apple M3 Ultra", 60, 96, "26.6.2"),
        ("m4 max 40c 128gb", "Apple M4 Max", 40, 128, "26.6.2"),
        ("M2 Max 38-core 96 GB", "Apple M2 Max", 38, 96, "26.6.2"),
        ("Apple M4 Pro 20 core gpu 48gb macos 15", "Apple M4 Pro", 20, 48, "15"),
        ("apple m1 8gb", "Apple M1", None, 8, "26.6.2"),  # 7 or 8 cores
        ("128GB M4 Max", "Apple M4 Max", 40, 128, "26.6.2"),
        ("m4max 36g", "Apple M4 Max", 32, 36, "26.6.2"),
        ("m4-max, 40-core GPU, 64GB", "Apple M4 Max", 40, 64, "26.6.2"),
        ("macOS 15.7.1, M3 Max (40 GPU cores), 64 GiB", "Apple M3 Max", 40, 64, "15.7.1"),
        ("Mac Studio M3 Ultra 32-core CPU 80-core GPU 512GB unified memory", "Apple M3 Ultra", 80, 512, "26.6.2"),
        ("MacBook Pro with M4 and 16GB of RAM", "Apple M4", None, 16, "26.6.2"),
        ("macbook pro m4 pro 24gb", "Apple M4 Pro", None, 24, "26.6.2"),
        ("MacBook Neo A18 Pro 8gb", "Apple A18 Pro", 5, 8, "26.6.2"),
    ],
)
def test_words_name_a_mac(text, chip, gpu_core_count, memory_gib, macos):
    """Chip, GPU, memory and macOS are found in any order and spelling; what is not said is filled in."""
    expected = mac(chip, memory_gib=memory_gib, gpu_core_count=gpu_core_count, macos=macos)

    assert parse_mac(text) == expected
    assert expected.memory_bandwidth_bytes_per_s is not None


@given(
    st.permutations(["m4 max", "40c", "128gb", "macos 26.6.2"]),
    st.sampled_from([" ", ", ", "  ", " / "]),
    st.sampled_from([str.lower, str.upper, str.title]),
)
def test_order_and_case_do_not_matter(parts, separator, case):
    """The parts of a Mac may come in any order, in capitals or not, with commas or not."""
    assert parse_mac(case(separator.join(parts))) == fake.M4_MAX_128


@pytest.mark.parametrize("row", load_chips(), ids=lambda row: f"{row.chip} {row.gpu_core_counts[0]}")
def test_every_chip_of_the_table_can_be_said(row):
    """A chip with its GPU and its largest memory is that row's Mac."""
    profile = parse_mac(f"{row.chip} {row.gpu_core_counts[0]}-core {row.max_memory_bytes // GIB} GB")

    assert profile.chip == row.chip
    assert profile.memory_bandwidth_bytes_per_s == row.memory_bandwidth_bytes_per_s
    assert profile.memory_bytes == row.max_memory_bytes


@pytest.mark.parametrize("text", ["m9 max 128gb", "m4 ultra 64c 512gb"])
def test_an_unknown_chip_has_memory_but_no_bandwidth(text):
    """Next year's chip can be planned for: its memory is known, its speed is not, its limit is estimated."""
    profile = parse_mac(text)

    assert profile.memory_bytes >= 128 * GIB
    assert profile.wired_limit_bytes > 100 * GIB
    assert (profile.memory_bandwidth_bytes_per_s, profile.wired_limit_source) == (None, "estimated")


def test_more_memory_than_is_sold_is_taken_as_an_estimate():
    """A Mac that Apple may sell tomorrow is planned for, with a limit that no capture proves."""
    sold, tomorrow = parse_mac("m4 pro 48gb"), parse_mac("m4 pro 128gb")

    assert (sold.wired_limit_source, tomorrow.wired_limit_source) == ("default", "estimated")
    assert tomorrow.memory_bandwidth_bytes_per_s == 273 * GB


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("rtx 4090", "'rtx 4090' names no Apple chip", '--mac "m4 max 40c 128gb"'),
        ("", "names no Apple chip", '--mac "m4 max 40c 128gb"'),
        ("128gb", "names no Apple chip", '--mac "m4 max 40c 128gb"'),
        ("nvidia a100 80gb", "names no Apple chip", "describe a Mac"),
        ("tesla m40 24gb", "'tesla' in 'tesla m40 24gb' is not understood", "say chip, GPU cores, memory and macOS"),
        (
            "m3 ultra",
            "does not say how much memory that Mac has; the Apple M3 Ultra is sold with up to 512 GiB",
            "m3 ultra 512gb",
        ),
        ("m3 ultra 0gb", "does not say how much memory", '--mac "m3 ultra 512gb"'),
        ("m9 max", "'m9 max' does not say how much memory that Mac has", '--mac "m9 max 64gb"'),
        ("m3 ultra 512", "'512' in 'm3 ultra 512' is not understood", "--mac"),
        ("m4 max 16c 64gb", "the Apple M4 Max has 32 or 40 GPU cores, not 16", '--mac "m4 max 40c 64gb"'),
        ("m4 max 64gb or 128gb", "says two things: '64gb' and '128gb'", "describe one Mac"),
        ("m4 max m4 pro 64gb", "'m4 pro' in", "--mac"),
        ("m4 max pro 64gb", "'pro' in", "--mac"),
        ("m1 8gb macos 13.6", "macOS 13.6; MLX needs macOS 14 or later", "update macOS"),
    ],
)
def test_what_is_no_mac_is_refused_with_what_to_write(text, problem, hint):
    """What is missing, wrong or not understood is named, with words that would be understood."""
    with pytest.raises(UnsupportedMachine) as refused:
        parse_mac(text)

    assert problem in refused.value.problem
    assert hint in refused.value.hint


@pytest.mark.parametrize("text", ["m3 ultra", "m9 max", "m4 max 16c 64gb", "m1 pro 9c 16gb"])
def test_the_words_of_a_hint_are_understood(text):
    """Who types the hint's example gets a Mac."""
    with pytest.raises(UnsupportedMachine) as refused:
        parse_mac(text)
    example = refused.value.hint.split('"')[1]

    assert parse_mac(example).memory_bytes > 0


@given(st.text() | st.from_regex(r"(apple )?[ma]\d{1,3}( pro| max)? \d{0,5} ?(gb|c)? .{0,9}", fullmatch=True))
def test_no_text_fails_in_another_way(text):
    """Any text is a Mac or is refused as no Mac."""
    try:
        profile = parse_mac(text)
    except UnsupportedMachine:
        return

    assert profile.chip.startswith("Apple ")
    assert profile.memory_bytes > 0
