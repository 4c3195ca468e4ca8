"""The values of one piece of a tensor, in blocks of rows that bound the memory that a conversion takes."""

from collections.abc import Iterator
from math import gcd, prod
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from r1mac.convert.layout import OutputTensor
from r1mac.convert.sources import Source

# Larger blocks are no faster, and smaller ones cost more calls than they save memory.
DEFAULT_BLOCK_BYTES = 8 * 2**20
# The widest that a value becomes on its way.
_VALUE_BYTES = 4

Array = np.ndarray[Any, Any]


class Block(NamedTuple):
    """Some rows of an output tensor, its leading axes taken as one.

    Attributes:
        first_row: place of the first one.
        values: not computed yet, of any type.
    """

    first_row: int
    values: mx.array


def as_numpy(values: mx.array) -> Array:
    """Return *values* as numpy has them, without a copy, when MLX has computed them; bfloat16 as uint16."""
    return np.array(values.view(mx.uint16) if values.dtype == mx.bfloat16 else values, copy=False)


def rows_of(shape: tuple[int, ...]) -> int:
    """Return the rows of a tensor whose leading axes are taken as one; a vector has one a value."""
    return prod(shape[:-1]) if len(shape) > 1 else prod(shape)


def piece_blocks(source: Source, tensor: OutputTensor, index: int, *, block_bytes: int) -> Iterator[Block]:
    """Yield the piece *index* of *tensor* in order, as blocks of about *block_bytes* as float32.

    A block is at least one step of rows of the source (a block of FP8, a head), however large that is.
    """
    name = tensor.sourcing.names[index]
    if tensor.sourcing.kind in {"keys", "values"}:
        yield from _latent_blocks(source, name, tensor, block_bytes)
        return
    shape = source.shapes()[name]
    first_row = index * (rows_of(tensor.shape) // len(tensor.sourcing.names))
    if not shape:
        yield Block(first_row, source.rows(name, 0, 1))
        return
    step, inner_rows = source.row_step(name), rows_of(tensor.shape[-len(shape) :]) // max(shape[0], 1)
    count = max(block_bytes // (_VALUE_BYTES * max(prod(shape[1:]), 1)) // step, 1) * step
    for start in range(0, shape[0], count):
        yield Block(first_row + start * inner_rows, source.rows(name, start, min(start + count, shape[0])))


def _latent_blocks(source: Source, name: str, tensor: OutputTensor, block_bytes: int) -> Iterator[Block]:
    """Yield MLA's ``embed_q`` or ``unembed_out`` ``[heads, rows, columns]`` from ``kv_b_proj``, some heads at once.

    ``kv_b_proj`` is ``[heads x (nope + value), rank]``: each head's keys, then its values. The keys are
    wanted transposed, ``[heads, rank, nope]``.
    """
    row_count, rank = source.shapes()[name]
    heads, head_rows, _ = tensor.shape
    per_head = row_count // heads
    step = source.row_step(name)
    heads_step = step // gcd(step, per_head)
    count = max(block_bytes // (_VALUE_BYTES * per_head * rank) // heads_step, 1) * heads_step
    for first in range(0, heads, count):
        last = min(first + count, heads)
        values = source.rows(name, first * per_head, last * per_head).reshape(last - first, per_head, rank)
        if tensor.sourcing.kind == "keys":
            values = values[:, : tensor.shape[2], :].swapaxes(-1, -2)
        else:
            values = values[:, per_head - tensor.shape[1] :, :]
        yield Block(first * head_rows, mx.contiguous(values))
