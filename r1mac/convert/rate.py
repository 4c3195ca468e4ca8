"""How fast this computer quantises, measured on the spot."""

import time
from collections.abc import Sequence

import mlx.core as mx

from r1mac.plan.memory import Quantization
from r1mac.plan.recipe import WIDE_BITS

_ROWS, _COLUMNS = 1024, 2048
_REPEATS = 4


def values_per_s(widths: Sequence[Quantization]) -> float:
    """Return how many bfloat16 values a second are checked and quantised to the slowest of *widths*."""
    values = mx.random.normal((_ROWS, _COLUMNS), dtype=mx.bfloat16, key=mx.random.key(0))
    mx.eval(values)
    return min(_rate(values, width) for width in widths)


def _rate(values: mx.array, width: Quantization) -> float:
    best_s = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        largest = mx.max(values.view(mx.uint16))
        parts = (
            mx.quantize(values, group_size=width.group_size, bits=width.bits, mode=width.mode)
            if width.bits < WIDE_BITS
            else (values.astype(mx.float32),)
        )
        mx.eval(largest, *parts)
        best_s = min(best_s, time.perf_counter() - started)
    return values.size / best_s
