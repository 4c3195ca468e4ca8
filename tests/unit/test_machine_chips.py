"""The table of Apple's chips."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.machine.chips import find_chip, load_chips, parse_chips
from r1mac.units import GB, GIB

HEADER = "chip,gpu_core_counts,memory_bandwidth_gb_per_s,max_memory_gib,year,verified"
M4_MAX_LOW = "Apple M4 Max,32,410,36,2024,yes"


@pytest.mark.parametrize(
    ("chip", "gpu_core_count", "memory_gib", "gb_per_s"),
    [
        ("Apple M1", 8, 8, 68.25),
        ("Apple M1", 7, 8, 68.25),
        ("Apple M2 Pro", 19, 32, 204.8),
        ("Apple M3 Max", 30, 96, 300),
        ("Apple M3 Max", 40, 64, 400),
        ("Apple M3 Ultra", 80, 512, 819),
        ("Apple M4 Max", 32, 36, 410),
        ("Apple M4 Max", 40, 64, 546),
        ("Apple M5 Ultra", 80, 512, 1200),
        ("Apple M6", 12, 32, 170),
        ("Apple A18 Pro", 5, 8, 60),
    ],
)
def test_chip_and_gpu_name_the_bandwidth(chip, gpu_core_count, memory_gib, gb_per_s):
    """The row of a Max chip is found by its GPU, and a rate is a whole number of bytes a second."""
    facts = find_chip(chip, gpu_core_count, memory_gib * GIB)

    assert facts is not None
    assert facts.memory_bandwidth_bytes_per_s == gb_per_s * GB
    assert isinstance(facts.memory_bandwidth_bytes_per_s, int)


@pytest.mark.parametrize(
    ("chip", "gpu_core_count", "memory_gib", "gb_per_s"),
    [
        ("Apple M3 Max", None, 128, 400),  # the 30-core chip ends at 96
        ("Apple M3 Max", None, 36, 300),  # both are sold with 36: the slower one
        ("Apple M4 Max", None, 48, 546),  # the 32-core chip ends at 36
        ("Apple M4 Max", None, 36, 410),
        ("Apple M5 Max", None, 999, 460),  # more than any row: the slower one
        ("Apple M5", 8, 16, 153),  # a GPU that the table lacks
        ("Apple M5 Max", 36, 64, 614),
        ("Apple M5 Ultra", 60, 96, 1200),
    ],
)
def test_memory_decides_where_the_gpu_does_not(chip, gpu_core_count, memory_gib, gb_per_s):
    """Without a known GPU the memory chooses the row, and in doubt the slower row is taken."""
    facts = find_chip(chip, gpu_core_count, memory_gib * GIB)

    assert facts is not None
    assert facts.memory_bandwidth_bytes_per_s == gb_per_s * GB


@pytest.mark.parametrize("chip", ["Apple M7", "Apple M4 Ultra", "Apple M7 (Virtual)", "Intel(R) Core(TM) i9", "", "M1"])
def test_an_unknown_chip_is_no_error(chip):
    """A chip that is not in the table has no facts, and is no reason to stop."""
    assert find_chip(chip, 10, 16 * GIB) is None


def test_a_virtual_chip_is_looked_up_as_the_real_one():
    """The facts of «Apple M1 (Virtual)» are those of the M1."""
    facts = find_chip("Apple M1 (Virtual)", None, 7 * GIB)

    assert facts == find_chip("Apple M1", 8, 8 * GIB)


def test_the_shipped_table_is_whole():
    """Every M chip from M1 to M6 that exists is in the table, and an M4 Ultra is not."""
    names = {row.chip for row in load_chips()}
    expected = {f"Apple M{generation}{tier}" for generation in range(1, 6) for tier in ("", " Pro", " Max", " Ultra")}

    assert names == expected - {"Apple M4 Ultra"} | {"Apple M6", "Apple A18 Pro"}


def test_a_row_says_whether_its_source_quotes_apple():
    """«secondary» in the table becomes verified=False."""
    m1, m1_pro, *_ = load_chips()

    assert (m1.chip, m1.verified) == ("Apple M1", False)
    assert (m1_pro.chip, m1_pro.verified) == ("Apple M1 Pro", True)
    assert m1_pro.gpu_core_counts == (14, 16)
    assert m1_pro.max_memory_bytes == 32 * GIB
    assert m1_pro.year == 2021


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("Apple M9,8|ten,100,16,2030,yes", "ten"),
        ("Apple M9,,100,16,2030,yes", "invalid literal"),
        ("Apple M9,8,fast,16,2030,yes", "fast"),
        ("Apple M9,8,0,16,2030,yes", "above 0"),
        ("Apple M9,8,-100,16,2030,yes", "above 0"),
        ("Apple M9,8,inf,16,2030,yes", "infinity"),
        ("Apple M9,8,100,16.5,2030,yes", "16.5"),
        ("Apple M9,8,100,16,2030,no", "verified is 'no'"),
        ("Apple M9,8,100,16,2030", "5 cells instead of 6"),
        ("Apple M9,8,100,16,2030,yes,too much", "7 cells instead of 6"),
        ("M9,8,100,16,2030,yes", "'M9' is not a name"),
        ("", "1 cells"),
        (M4_MAX_LOW, "Apple M4 Max with 32 GPU cores is there already"),
    ],
)
def test_a_wrong_row_names_its_line(row, why):
    """Who edits the table wrongly is told the line and the cell."""
    with pytest.raises(ValueError, match=r"^chips\.csv line 3: ") as raised:
        parse_chips(f"{HEADER}\n{M4_MAX_LOW}\n{row}\n")

    assert why in str(raised.value)


def test_a_wrong_header_is_line_1():
    """A table with other columns is refused at its first line."""
    with pytest.raises(ValueError, match=r"^chips\.csv line 1: the columns must be chip,"):
        parse_chips("chip,gpu\n")


@given(st.text())
def test_a_broken_table_is_only_ever_a_value_error(text):
    """No text at all makes the reader of the table fail in another way than ValueError."""
    try:
        rows = parse_chips(f"{HEADER}\n{text}")
    except ValueError:
        return

    assert isinstance(rows, tuple)
