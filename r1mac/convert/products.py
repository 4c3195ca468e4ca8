"""Products of float32 matrices that are read a block of rows at a time, by whatever is fast on this computer.

The MLX that pip installs multiplies on a CPU with a BLAS that is some thirty times slower than the one in numpy, so
there numpy multiplies, and a few threads read and take apart the blocks.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np

from r1mac.convert.blocks import Array, as_numpy
from r1mac.convert.device import on_cpu
from r1mac.convert.float_rows import FloatRows
from r1mac.convert.grouped_rows import Tokens
from r1mac.convert.side_by_side import Task, Work, thread_count

_VALUE_BYTES = 4
# A matrix of fewer values is one task: its calls take longer than its product.
_CUT_VALUES = 2**18


def quietly() -> "np.errstate":
    """Let numbers become infinite, or none, without a word: they are looked for in the end."""
    return np.errstate(over="ignore", invalid="ignore")


def gated(gate: mx.array, up: mx.array) -> mx.array:
    """Return SwiGLU's product ``silu(gate) * up``."""
    if not on_cpu():
        return gate * mx.sigmoid(gate) * up
    # MLX takes ten times as long for an exponential on a CPU.
    return mx.array(gated_rows(as_numpy(gate), as_numpy(up)))


def gated_rows(gate: Array, up: Array) -> Array:
    """Return what ``gated`` does, by numpy."""
    with quietly():
        made: Array = np.exp(-gate)
        made += 1
        np.divide(gate, made, out=made)
        made *= up
    return made


class Products:
    """Multiplies with the matrices of a source, by their names there.

    Args:
        rows: the source.
        block_bytes: of a block of rows, as float32.
    """

    def __init__(self, rows: FloatRows, *, block_bytes: int) -> None:
        self._rows, self.block_bytes = rows, block_bytes

    def times(self, names: Sequence[str], x: mx.array) -> Work[list[mx.array]]:
        """Return ``x @ W.T`` ``[tokens, rows]`` of each matrix W for *x* ``[tokens, columns]``."""
        if not on_cpu():
            return [_joined(x @ self._rows.rows(name, *span).T for span in self._spans(name)) for name in names]
        given = Tokens(as_numpy(x))
        made = [np.empty((x.shape[0], self._rows.shapes()[name][0]), np.float32) for name in names]
        tasks = [
            partial(self._fill, into[:, slice(*span)], name, given, *span)
            for into, name in zip(made, names, strict=True)
            for span in self._spans(name, at_least=thread_count() if self._is_worth_cutting(name) else 1)
        ]
        yield from self.results(tasks, names)
        return [mx.array(one) for one in made]

    def times_heads(self, names: tuple[str, str], x: mx.array) -> Work[tuple[mx.array, mx.array]]:
        """Return the products of *x* ``[tokens, rank]`` with all heads' matrices, ``[tokens, heads x columns]`` each.

        Args:
            names: of a stack ``[heads, rank, columns]``, and of one ``[heads, columns, rank]``.
            x: the tokens.
        """
        if not on_cpu():
            keys, values = names
            return (
                _joined(_flat(x @ self._rows.rows(keys, *span)) for span in self._head_spans(keys)),
                _joined(
                    _flat(x @ self._rows.rows(values, *span).swapaxes(-1, -2)) for span in self._head_spans(values)
                ),
            )
        shapes, given = self._rows.shapes(), Tokens(as_numpy(x))
        made = [
            np.empty((x.shape[0], shapes[name][0], shapes[name][axis]), np.float32)
            for name, axis in zip(names, (2, 1), strict=True)
        ]
        tasks = [
            partial(fill, into[:, slice(*span)], name, given, *span)
            for fill, into, name in zip((self._fill_keys, self._fill_values), made, names, strict=True)
            for span in self._head_spans(name)
        ]
        yield from self.results(tasks, names)
        by_keys, by_values = (mx.array(one.reshape(len(one), -1)) for one in made)
        return by_keys, by_values

    def times_some(self, name: str, x: mx.array, start: int, stop: int) -> Work[Array]:
        """Return ``x @ W.T`` for the rows *start* to *stop* of a matrix alone, as numpy has it."""
        if not on_cpu():
            return as_numpy(x @ self._rows.rows(name, start, stop).T)
        made = np.empty((x.shape[0], stop - start), np.float32)
        task = partial(self._fill, made, name, Tokens(as_numpy(x)), start, stop)
        yield from self.results([task], [name])
        return made

    def times_alone(self, name: str, x: mx.array) -> mx.array:
        """Return what ``times`` does of one matrix, on a GPU."""
        return _joined(x @ self._rows.rows(name, *span).T for span in self._spans(name))

    def times_each(self, names: Sequence[str], xs: Sequence[Tokens]) -> list[Array]:
        """Return the product of each of *xs* with its matrix, as numpy has it, within one task.

        Codes of some matrices that follow one another in a stack are read at once, as many as a block has room for.
        """
        made: list[Array] = []
        together = self._rows.read_together(names[0], self.block_bytes)
        for start in range(0, len(names), together):
            some = slice(start, start + together)
            made += (
                self._rows.times_each(names[some], xs[some])
                if together > 1
                else self._by_blocks(names[start], xs[start])
            )
        return made

    def results(self, tasks: Sequence[Task], names: Iterable[str]) -> Work[Sequence[Any]]:
        """Return the results of *tasks* with the matrices of these *names*; those that MLX takes part in are done here.

        So are all of them on a GPU.
        """
        if not on_cpu() or any(map(self._rows.needs_mlx, names)):
            return [task() for task in tasks]
        return (yield tasks)

    def _fill(self, into: Array, name: str, x: Tokens, start: int, stop: int) -> None:
        with quietly():
            into[:] = self._rows.times(name, x, start, stop)

    def _fill_keys(self, into: Array, name: str, x: Tokens, start: int, stop: int) -> None:
        with quietly():
            into[:] = np.matmul(x.rows, self._rows.values(name, start, stop)).swapaxes(0, 1)

    def _fill_values(self, into: Array, name: str, x: Tokens, start: int, stop: int) -> None:
        with quietly():
            into[:] = self._rows.times(name, x, start, stop).reshape(into.shape)

    def _by_blocks(self, name: str, x: Tokens) -> list[Array]:
        """Return one product alone."""
        parts = [self._rows.times(name, x, *span) for span in self._spans(name)]
        return parts if len(parts) == 1 else [np.concatenate(parts, axis=-1)]

    def _head_spans(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the first and last matrix of each block of a stack."""
        heads, *shape = self._rows.shapes()[name]
        count = max(self.block_bytes // (_VALUE_BYTES * prod(shape)), 1)
        for start in range(0, heads, count):
            yield start, min(start + count, heads)

    def _is_worth_cutting(self, name: str) -> bool:
        return prod(self._rows.shapes()[name]) >= _CUT_VALUES

    def _spans(self, name: str, *, at_least: int = 1) -> Iterator[tuple[int, int]]:
        """Yield the first and last row of each block, of *at_least* so many blocks where a source has such."""
        rows, columns = self._rows.shapes()[name]
        step = self._rows.row_step(name)
        most = min(self.block_bytes // (_VALUE_BYTES * max(columns, 1)), -(-rows // at_least))
        count = max(most // step, 1) * step
        for start in range(0, rows, count):
            yield start, min(start + count, rows)


def _joined(parts: Iterable[mx.array]) -> mx.array:
    computed = []
    for part in parts:
        mx.eval(part)  # else all blocks would wait in memory
        computed.append(part)
    return mx.concatenate(computed, axis=-1)


def _flat(heads: mx.array) -> mx.array:
    """Return *heads* ``[heads, tokens, columns]`` as ``[tokens, heads x columns]``."""
    return heads.swapaxes(0, 1).reshape(heads.shape[1], -1)
