"""Names and memory of conversions, decided before anything is opened."""

from pathlib import Path

import pytest

from r1mac.convert.recipe import plain
from r1mac.prepare.conversion import outputs_of
from r1mac.prepare.conversion_memory import block_bytes_for, peak_bytes
from r1mac.units import GIB, MIB

AFFINE, NVFP4 = plain(bits=4), plain(bits="nvfp4")


@pytest.mark.parametrize(
    ("output", "widths", "names"),
    [
        ("/m/out", ["4"], ["out"]),
        ("/m/out", ["2", "3"], ["out-2bit", "out-3bit"]),
        ("/m/out", ["4", "mxfp4"], ["out-4bit", "out-mxfp4"]),
        ("/m/x-{bits}-y", ["4"], ["x-4-y"]),
        ("/m/x{bits}", ["2", "nvfp4"], ["x2", "xnvfp4"]),
    ],
)
def test_each_width_has_a_folder(output, widths, names):
    """One width takes the name as it is; several add theirs, or put it where the person wants it."""
    assert outputs_of(Path(output), widths) == [Path("/m") / name for name in names]


@pytest.mark.parametrize("recipe", [AFFINE, NVFP4])
@pytest.mark.parametrize("memory_bytes", [200 * MIB, 300 * MIB, 500 * MIB, 4 * GIB, None])
def test_the_peak_keeps_to_the_memory_that_is_given(memory_bytes, recipe):
    """A forecast peak is never more than what was allowed, and little where nothing was said."""
    assert peak_bytes(memory_bytes, [recipe]) <= (memory_bytes or 200 * MIB)


def test_more_memory_makes_larger_blocks_up_to_a_limit():
    """Blocks grow with the memory; MLX's floating-point modes, which hold more on the way, get smaller ones."""
    assert block_bytes_for(200 * MIB, [AFFINE]) < block_bytes_for(400 * MIB, [AFFINE])
    assert block_bytes_for(100 * GIB, [AFFINE]) <= 64 * MIB
    assert block_bytes_for(None, [AFFINE, NVFP4]) < block_bytes_for(None, [AFFINE])
