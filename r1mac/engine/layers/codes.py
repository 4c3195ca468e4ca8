"""Values to codes of 8 and 4 bits, for the cache.

``mx.quantize`` moves a group's scale until zero has a code of its own, and rounds it to the type of the values only
after it has chosen the codes. Keys and values of the cache lose by that: without it the divergence from a wide cache is
a tenth less at 8 bits and a fifth less at 4 in float32, and at 8 bits less than half in bfloat16 (docs/lab.md).
"""

import mlx.core as mx


def to_codes(rows: mx.array, *, bits: int, group_size: int) -> tuple[mx.array, mx.array, mx.array]:
    """Return codes, scales and biases of *rows* as ``mx.dequantize`` and ``mx.quantized_matmul`` take them.

    A group's least value is its bias; its codes are those nearest to its values at the scale that is stored.

    Args:
        rows: ``[..., length]``, in any floating-point type; scales and biases have it too.
        bits: width of a code.
        group_size: values that share a scale; divides the length.
    """
    groups = mx.unflatten(rows, -1, (-1, group_size))
    lowest, highest = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    codes, scales = _nearest(groups, lowest, highest, 2**bits - 1)
    # Whole numbers from 1 - 2**bits to 0, and both of these among them, or zeros: nothing is rounded, only packed.
    packed, _, _ = mx.quantize(codes.flatten(-2), group_size=group_size, bits=bits)
    return packed, scales.squeeze(-1), lowest.squeeze(-1)


@mx.compile
def _nearest(groups: mx.array, lowest: mx.array, highest: mx.array, most: int) -> tuple[mx.array, mx.array]:
    """Return codes from -*most* to 0, in float32, and scales in the type of *groups*."""
    wide, least, largest = (array.astype(mx.float32) for array in (groups, lowest, highest))
    scales = ((largest - least) / most).astype(groups.dtype)
    # Values that are alike, or differ by less than their type has a scale for: all take the least.
    alike = scales == 0
    scales = mx.where(alike, mx.ones_like(scales), scales)
    codes = mx.minimum(mx.round((wide - least) / scales.astype(mx.float32)), most)
    # With a scale that was rounded up the largest might come to the code below.
    codes = mx.where(wide == largest, most, codes) - most
    return mx.where(alike, mx.zeros_like(codes), codes), scales
