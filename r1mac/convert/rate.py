"""How fast this computer quantises, measured on the spot."""

import time
from collections.abc import Sequence

import mlx.core as mx

from r1mac.convert.encode import Encoder, Form
from r1mac.plan.memory import Quantization
from r1mac.plan.recipe import WIDE_BITS

_ROWS, _COLUMNS = 1024, 2048
_REPEATS = 4


def values_per_s(widths: Sequence[Quantization]) -> float:
    """Return how many bfloat16 values a second are checked and quantised to the slowest of *widths*."""
    values = mx.random.normal((_ROWS, _COLUMNS), dtype=mx.bfloat16, key=mx.random.key(0))
    mx.eval(values)
    with Encoder() as encoder:
        return min(_rate(encoder, values, width) for width in widths)


def _rate(encoder: Encoder, values: mx.array, width: Quantization) -> float:
    form = Form(mx.bfloat16, width) if width.bits < WIDE_BITS else Form(mx.float32, None)
    best_s = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        encoder.begin("rate", values, [form]).wait()
        best_s = min(best_s, time.perf_counter() - started)
    return values.size / best_s
