"""What is known of the inputs of a model's matrices: second moments over a calibration text, and their file.

Tokens count as much as the model's answers hang on what the matrix makes of them (``convert.recorder``). For each input
channel there is the mean square, and how channels go together: correlations, in blocks along the diagonal, which
bounds memory and disk for the widest layers. Stacked experts and MLA's heads have moments of their own, one slice each.
Where all are given the same channels they have one set of correlations; where a channel means something else in each,
as within an expert, each has its own.
"""

import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from r1mac.durable import folder_to_disk
from r1mac.errors import BadCheckpoint

RECORD_NAME = "r1mac-statistics.json"
# The most channels that are correlated with each other, and the most products of channels that one input may take.
_BLOCK_COLUMNS, _PRODUCTS = 2**11, 2**27
# A slice's own moments weigh as much as the layer's when it has seen this many tokens: an expert that the text
# rarely chose is told by what the layer's tokens have in common.
_PRIOR_TOKENS = 64.0
# Divides where nothing was seen.
_TINY = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStatistics:
    """The input of one matrix, or of several that share it.

    Attributes:
        moments: ``E[x**2]``, float32 ``[slices, columns]``; one slice for a plain matrix.
        counts: how many tokens of equal weight would tell as much as those that each slice has met, ``[slices]``.
        correlations: blocks along the diagonal of ``E[x x^T]``, scaled to a diagonal of one: ``[columns, columns]``
            for all slices together, or ``[slices, columns, columns]``.
    """

    moments: mx.array
    counts: mx.array
    correlations: tuple[mx.array, ...] = ()

    def slice_moments(self, number: int) -> mx.array:
        """Return ``E[x**2]`` ``[columns]`` of one slice, mixed with the mean over all as far as it met few tokens."""
        if self.moments.shape[0] == 1:
            return self.moments[0]
        count = self.counts[number]
        return (count * self.moments[number] + _PRIOR_TOKENS * self.common_moments()) / (count + _PRIOR_TOKENS)

    def common_moments(self) -> mx.array:
        """Return ``E[x**2]`` ``[columns]`` over the tokens of all slices."""
        return mx.sum(self.moments * self.counts[:, None], axis=0) / mx.maximum(mx.sum(self.counts), 1)


def correlated_columns(columns: int, slices: int = 1) -> int:
    """Return how many of an input's *columns* are correlated with each other, where each of *slices* has its own."""
    most = max(_PRODUCTS // (columns * slices), 1)
    return min(columns, _BLOCK_COLUMNS, 1 << (most.bit_length() - 1))


class Tally:
    """Sums over the tokens that meet one input.

    Args:
        columns: length of the input.
        slices: experts or heads that are counted apart; 1 for a plain matrix.
        apart: whether correlations too are those of each slice.
    """

    def __init__(self, columns: int, *, slices: int = 1, apart: bool = False) -> None:
        self._apart = apart
        self._squares = mx.zeros((slices, columns))
        self._weights, self._weight_squares = mx.zeros(slices), mx.zeros(slices)
        step = correlated_columns(columns, slices if apart else 1)
        self._spans = list(itertools.pairwise([*range(0, columns, step), columns]))
        leading = (slices,) if apart else ()
        self._products = [mx.zeros((*leading, end - start, end - start)) for start, end in self._spans]

    def add(self, rows: mx.array, weights: mx.array) -> None:
        """Take *rows* ``[tokens, columns]`` that weigh *weights* ``[tokens]``, of the only slice."""
        self.add_slices(rows[None], weights[None])

    def add_slices(self, rows: mx.array, weights: mx.array) -> None:
        """Take *rows* ``[slices, tokens, columns]`` that weigh *weights* ``[slices, tokens]``."""
        rows = rows.astype(mx.float32)
        weighted = rows * weights[..., None]
        self._squares = self._squares + mx.sum(weighted * rows, axis=1)
        self._weights = self._weights + mx.sum(weights, axis=1)
        self._weight_squares = self._weight_squares + mx.sum(weights * weights, axis=1)
        for place, (start, end) in enumerate(self._spans):
            products = weighted[..., start:end].swapaxes(1, 2) @ rows[..., start:end]
            self._products[place] = self._products[place] + (products if self._apart else mx.sum(products, axis=0))

    def add_chosen(self, rows: mx.array, weights: mx.array, numbers: mx.array) -> None:
        """Take *rows* ``[tokens, columns]`` that weigh *weights* ``[tokens]``, of the slices *numbers* ``[tokens]``."""
        order = mx.argsort(numbers)
        rows, weights, numbers = rows[order].astype(mx.float32), weights[order], numbers[order]
        weighted = rows * weights[:, None]
        self._squares = self._squares.at[numbers].add(weighted * rows)
        self._weights = self._weights.at[numbers].add(weights)
        self._weight_squares = self._weight_squares.at[numbers].add(weights * weights)
        counts = mx.zeros(self._weights.shape, mx.uint32).at[numbers].add(mx.ones(numbers.shape, mx.uint32))
        ends = mx.cumsum(counts)
        segments = mx.stack([ends - counts, ends], axis=1).astype(mx.uint32)
        for place, (start, end) in enumerate(self._spans):
            left, right = weighted[:, start:end].T, rows[:, start:end]
            products = mx.segmented_mm(left, right, segments) if self._apart else left @ right
            self._products[place] = self._products[place] + products

    @property
    def arrays(self) -> list[mx.array]:
        """What has to be computed before the tokens can be let go."""
        return [self._squares, self._weights, self._weight_squares, *self._products]

    def statistics(self) -> InputStatistics:
        """Return the means."""
        moments = self._squares / mx.maximum(self._weights, _TINY)[:, None]
        correlations = []
        for product in self._products:
            roots = mx.rsqrt(mx.maximum(mx.diagonal(product, axis1=-2, axis2=-1), _TINY))
            correlations.append((product * roots[..., None] * roots[..., None, :]).astype(mx.float16))
        counts = self._weights * self._weights / mx.maximum(self._weight_squares, _TINY)
        return InputStatistics(moments=moments, counts=counts, correlations=tuple(correlations))


def statistics_file(folder: Path, path: str) -> Path:
    """Return the file in *folder* that the matrix at *path* has its statistics in."""
    parts = path.split(".")
    name = f"block-{int(parts[2]):05}" if parts[:2] == ["model", "layers"] else "head"
    return folder / f"{name}.safetensors"


def save_statistics(path: Path, statistics: Mapping[str, InputStatistics]) -> None:
    """Write *statistics*, by the path of each matrix, to *path*, whole and on the disk, or not at all."""
    tensors: dict[str, mx.array] = {}
    for name, known in statistics.items():
        tensors[f"{name}.moments"], tensors[f"{name}.counts"] = known.moments, known.counts
        tensors |= {f"{name}.correlations.{number}": block for number, block in enumerate(known.correlations)}
    save_whole(path, tensors, {"matrices": json.dumps(list(statistics))})


def load_statistics(path: Path) -> dict[str, InputStatistics]:
    """Return what :func:`save_statistics` wrote, by the path of each matrix; nothing is read before it is used.

    Raises:
        BadCheckpoint: the file is damaged, or of something else.
    """
    try:
        tensors, metadata = load_whole(path)
        names: list[str] = json.loads(metadata["matrices"])
        return {name: _statistics_of(name, tensors) for name in names}
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"{path} holds no statistics: {error}", hint="run `r1mac calibrate` again") from error


def save_whole(path: Path, tensors: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """Write a safetensors file under a name of its own, and give it its name when it is on the disk."""
    new = path.with_name(f".{path.name}.new.safetensors")
    mx.save_safetensors(str(new), tensors, metadata)
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(path)
    folder_to_disk(path.parent)


def load_whole(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Return the tensors of a safetensors file, which are read when they are used, and its metadata.

    Raises:
        RuntimeError: it is none, or is not there.
    """
    tensors, metadata = mx.load(str(path), return_metadata=True)
    return tensors, metadata  # type: ignore[return-value]


def _statistics_of(name: str, tensors: Mapping[str, mx.array]) -> InputStatistics:
    return InputStatistics(
        moments=tensors[f"{name}.moments"],
        counts=tensors[f"{name}.counts"],
        correlations=tuple(_numbered(f"{name}.correlations", tensors)),
    )


def _numbered(prefix: str, tensors: Mapping[str, mx.array]) -> Iterable[mx.array]:
    number = 0
    while (block := tensors.get(f"{prefix}.{number}")) is not None:
        yield block
        number += 1
