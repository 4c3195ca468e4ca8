"""What a conversion takes of the memory: blocks of rows, whose size follows from what it may take."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from r1mac.units import MIB

if TYPE_CHECKING:
    from r1mac.plan.recipe import Recipe

# What a conversion takes beside its blocks: Python, MLX, numpy and the command line.
_FIXED_BYTES = 112 * MIB
# Peak memory in blocks, from conversions on a CPU (docs/lab.md), where MLX's mxfp4 and nvfp4 hold much on the way.
_BLOCKS_AT_PEAK = {"affine": 8, "mxfp8": 8, "mxfp4": 20, "nvfp4": 32}
_DEFAULT_BYTES = _FIXED_BYTES + 64 * MIB
_LEAST_BLOCK_BYTES = MIB // 2
# Larger ones were slower.
_MOST_BLOCK_BYTES = 64 * MIB
# Blocks that are measured with are smaller by this: each of some threads has its own.
_MEASURING_SHARE = 4


class MeasuringRoom(NamedTuple):
    """What the measurement of a conversion's results may take, so that it takes no more than the conversion did.

    Attributes:
        states_bytes: of the text's hidden states.
        block_bytes: of a block of rows.
    """

    states_bytes: int
    block_bytes: int


def block_bytes_for(memory_bytes: int | None, recipes: Sequence["Recipe"]) -> int:
    """Return the size of a block, as float32, with which a conversion's peak stays below *memory_bytes*."""
    room_bytes = (memory_bytes or _DEFAULT_BYTES) - _FIXED_BYTES
    return min(max(room_bytes // _blocks_at_peak(recipes), _LEAST_BLOCK_BYTES), _MOST_BLOCK_BYTES)


def peak_bytes(memory_bytes: int | None, recipes: Sequence["Recipe"]) -> int:
    """Return what a conversion takes at its peak, whatever the model."""
    return _FIXED_BYTES + _blocks_at_peak(recipes) * block_bytes_for(memory_bytes, recipes)


def measuring_room(memory_bytes: int | None, recipes: Sequence["Recipe"]) -> MeasuringRoom:
    """Return what measuring the results may take where a conversion may take *memory_bytes*."""
    block_bytes = block_bytes_for(memory_bytes, recipes)
    return MeasuringRoom(_blocks_at_peak(recipes) * block_bytes // 2, block_bytes // _MEASURING_SHARE)


def _blocks_at_peak(recipes: Sequence["Recipe"]) -> int:
    return max(_BLOCKS_AT_PEAK[width.mode] for recipe in recipes for width in recipe.widths)
