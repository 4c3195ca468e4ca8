"""Products of float32 matrices that are read a block of rows at a time, by whatever is fast on this computer.

The MLX that pip installs multiplies on a CPU with a BLAS that is some thirty times slower than the one in numpy, so
there numpy multiplies, and a few threads read and take apart the blocks.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import mlx.core as mx
import numpy as np

from r1mac.convert.blocks import Array, as_numpy
from r1mac.convert.device import on_cpu
from r1mac.convert.float_rows import FloatRows

# Each holds blocks of its own.
_MOST_THREADS = 4
_VALUE_BYTES = 4

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def quietly() -> "np.errstate":
    """Let numbers become infinite, or none, without a word: they are looked for in the end."""
    return np.errstate(over="ignore", invalid="ignore")


def product(a: mx.array, b: mx.array) -> mx.array:
    """Return ``a @ b`` ``[..., rows, columns]``, float32; leading axes are those of both."""
    if not on_cpu():
        return a @ b
    with quietly():
        return mx.array(np.matmul(as_numpy(a), as_numpy(b)))


class Products:
    """Multiplies with the matrices of a source, by their names there.

    Args:
        rows: the source.
        block_bytes: of a block of rows, as float32.
    """

    def __init__(self, rows: FloatRows, *, block_bytes: int) -> None:
        self._rows, self._block_bytes = rows, block_bytes
        self._threads = min(os.cpu_count() or 1, _MOST_THREADS)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="multiply") if on_cpu() else None

    def times(self, name: str, x: mx.array) -> mx.array:
        """Return ``x @ W.T`` ``[tokens, rows]`` for *x* ``[tokens, columns]``."""
        if self._pool is None:
            return _joined(x @ self._rows.rows(name, *span).T for span in self._spans(name))
        given, made = as_numpy(x), np.empty((x.shape[0], self._rows.shapes()[name][0]), np.float32)

        def fill(span: tuple[int, int]) -> None:
            with quietly():
                made[:, slice(*span)] = self._rows.times(name, given, *span)

        self.each([name], fill, list(self._spans(name, at_least=self._threads)))
        return mx.array(made)

    def times_some(self, name: str, x: mx.array, start: int, stop: int) -> Array:
        """Return ``x @ W.T`` for the rows *start* to *stop* of a matrix alone, as numpy has it."""
        if self._pool is None:
            return as_numpy(x @ self._rows.rows(name, start, stop).T)
        return self._rows.times(name, as_numpy(x), start, stop)

    def times_alone(self, name: str, x: Array) -> Array:
        """Return what ``times`` does, as numpy has it, within one thread of ``each``."""
        parts = [self._rows.times(name, x, *span) for span in self._spans(name)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def each(self, names: Iterable[str], task: Callable[[_Item], _Result], items: Sequence[_Item]) -> Sequence[_Result]:
        """Return what *task* gives for each of *items*, at once in some threads on a CPU.

        Args:
            names: the tensors that it reads.
            task: without MLX.
            items: in the order of the results.
        """
        if self._pool is None or len(items) == 1 or any(map(self._rows.needs_mlx, names)):
            return [task(item) for item in items]
        return list(self._pool.map(task, items))

    def _spans(self, name: str, *, at_least: int = 1) -> Iterator[tuple[int, int]]:
        """Yield the first and last row of each block, of *at_least* so many blocks where a source has such."""
        rows, columns = self._rows.shapes()[name]
        step = self._rows.row_step(name)
        most = min(self._block_bytes // (_VALUE_BYTES * max(columns, 1)), -(-rows // at_least))
        count = max(most // step, 1) * step
        for start in range(0, rows, count):
            yield start, min(start + count, rows)


def _joined(parts: Iterable[mx.array]) -> mx.array:
    computed = []
    for part in parts:
        mx.eval(part)  # else all blocks would wait in memory
        computed.append(part)
    return mx.concatenate(computed, axis=-1)
