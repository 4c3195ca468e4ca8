"""One block of rows of one tensor becomes what the files hold of it: cast, checked and quantised."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from types import TracebackType
from typing import NamedTuple, Self

import mlx.core as mx

from r1mac.convert.affine import VALUES_AT_ONCE, Groups, is_exact, quantize_groups
from r1mac.convert.blocks import Array, as_numpy
from r1mac.convert.device import on_cpu
from r1mac.errors import BadCheckpoint
from r1mac.plan.memory import Quantization

# Reading and writing want a core too.
_MOST_THREADS = 4

Encoded = tuple[Array, ...]


class Form(NamedTuple):
    """What a tensor is written as: values of *dtype*, or codes, scales and (where *width* has them) biases.

    *fit* makes those of rows, where they are not simply rounded.
    """

    dtype: mx.Dtype
    width: Quantization | None
    fit: Callable[[mx.array], tuple[mx.array, ...]] | None = None


class _FloatBits(NamedTuple):
    """How a type's magnitudes are seen as integers, which compare alike: much cheaper than asking ``isfinite``."""

    bits_type: mx.Dtype
    magnitude: int
    infinity: int


_FLOAT_BITS = {
    mx.bfloat16: _FloatBits(mx.uint16, 0x7FFF, 0x7F80),
    mx.float16: _FloatBits(mx.uint16, 0x7FFF, 0x7C00),
    mx.float32: _FloatBits(mx.uint32, 0x7FFFFFFF, 0x7F800000),
}


@dataclass(frozen=True, slots=True)
class Encoding:
    """A block that is being worked on.

    Attributes:
        source_name: the tensor of the source that it is of.
        largest: the largest magnitude of its values as bits, by type.
        results: give each form's arrays, when they are there.
    """

    source_name: str
    largest: dict[mx.Dtype, mx.array]
    results: tuple[Callable[[], Encoded], ...]

    def wait(self) -> list[Encoded]:
        """Return the arrays of each form, in the order of the file.

        Raises:
            BadCheckpoint: there are values that are not finite.
        """
        for dtype, bits in self.largest.items():
            if int(bits.item()) >= _FLOAT_BITS[dtype].infinity:  # type: ignore[arg-type]
                raise BadCheckpoint(
                    f"{self.source_name} holds values that are not finite in {str(dtype).rpartition('.')[2]}",
                    hint="the checkpoint is damaged, or needs --dtype bfloat16",
                )
        return [result() for result in self.results]


class Encoder:
    """Makes of blocks what files hold, while the caller reads and writes.

    The bits are those of ``mx.quantize`` on the device that MLX computes on. A GPU does that by itself; on a CPU a few
    threads do (``convert.affine``).
    """

    def __init__(self) -> None:
        self._on_cpu = on_cpu()
        self._pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS), thread_name_prefix="quantize")

    def begin(self, source_name: str, values: mx.array, forms: Sequence[Form]) -> Encoding:
        """Begin to make each of *forms* of the rows *values*, ``[..., columns]``."""
        casts = {form.dtype: values.astype(form.dtype) for form in forms}
        largest = {dtype: _largest_bits(cast) for dtype, cast in casts.items()}
        made: dict[Form, tuple[mx.array, ...]] = {}
        for form in forms:
            if form.width is None:
                made[form] = (casts[form.dtype],)
            elif form.fit is not None:
                made[form] = form.fit(values)
            elif not self._is_threaded(form):
                width = form.width
                made[form] = mx.quantize(
                    casts[form.dtype], group_size=width.group_size, bits=width.bits, mode=width.mode
                )
        mx.async_eval(*largest.values(), *casts.values(), *(array for arrays in made.values() for array in arrays))  # type: ignore[no-untyped-call]
        results: dict[Form, Callable[[], Encoded]] = {form: partial(_computed, arrays) for form, arrays in made.items()}
        threaded = sorted({form for form in forms if form not in made}, key=_shared)
        for _, group in groupby(threaded, key=_shared):
            results |= self._quantize_in_threads(list(group), casts)
        return Encoding(source_name, largest, tuple(results[form] for form in forms))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _is_threaded(self, form: Form) -> bool:
        return self._on_cpu and form.fit is None and form.width is not None and is_exact(form.width, form.dtype)

    def _quantize_in_threads(
        self, forms: Sequence[Form], casts: dict[mx.Dtype, mx.array]
    ) -> dict[Form, Callable[[], Encoded]]:
        """Quantise to *forms*, which have one type and one size of groups in common."""
        widths = [form.width for form in forms if form.width is not None]
        size = widths[0].group_size
        groups = as_numpy(casts[forms[0].dtype]).reshape(-1, size)
        made = [Groups.empty(len(groups), width, groups.dtype) for width in widths]
        count = max(VALUES_AT_ONCE // size, 1)
        jobs: list[Future[None]] = []
        for start in range(0, len(groups), count):
            parts = [whole.part(start, start + count) for whole in made]
            jobs.append(self._pool.submit(quantize_groups, groups[start : start + count], widths, parts))
        return {form: partial(_filled, whole, jobs) for form, whole in zip(forms, made, strict=True)}


def _computed(arrays: Sequence[mx.array]) -> Encoded:
    return tuple(map(as_numpy, arrays))


def _filled(groups: Groups, jobs: Sequence[Future[None]]) -> Encoded:
    for job in jobs:
        job.result()
    return groups


def _shared(form: Form) -> tuple[str, int]:
    """Return what forms have in common that are quantised from one pass."""
    return str(form.dtype), form.width.group_size if form.width else 0


def _largest_bits(values: mx.array) -> mx.array:
    bits_type, magnitude, _ = _FLOAT_BITS[values.dtype]
    return mx.max(values.view(bits_type) & magnitude) if values.size else mx.array(0)
