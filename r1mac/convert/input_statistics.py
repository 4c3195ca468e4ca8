"""What is known of the inputs of a model's matrices: second moments over a calibration text, and their file.

For each input channel the mean square; for plain matrices also how channels go together, as correlations in blocks of
at most ``BLOCK_COLUMNS`` channels along the diagonal, which bounds memory and disk for the widest layers. Stacked
experts and MLA's heads have moments of their own, one slice each, and one set of correlations for all.
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
BLOCK_COLUMNS = 4096
# A slice's own moments weigh as much as the layer's when it has seen this many tokens: an expert that the text
# rarely chose is told by what the layer's tokens have in common.
_PRIOR_TOKENS = 64.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStatistics:
    """The input of one matrix, or of several that share it.

    Attributes:
        moments: ``E[x**2]``, float32 ``[slices, columns]``; one slice for a plain matrix.
        counts: tokens that each slice has met, float32 ``[slices]``.
        correlations: blocks along the diagonal of ``E[x x^T]``, scaled to a diagonal of one; none where not measured.
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


class Tally:
    """Sums over the tokens that meet one input.

    Args:
        columns: length of the input.
        slices: experts or heads that are counted apart; 1 for a plain matrix.
        correlates: whether channels are multiplied with each other too.
    """

    def __init__(self, columns: int, *, slices: int = 1, correlates: bool) -> None:
        self._squares = mx.zeros((slices, columns))
        self._counts = mx.zeros(slices)
        edges = [*range(0, columns, BLOCK_COLUMNS), columns] if correlates else []
        self._spans = list(itertools.pairwise(edges))
        self._products = [mx.zeros((end - start, end - start)) for start, end in self._spans]

    def add(self, rows: mx.array, numbers: mx.array | None = None) -> None:
        """Take *rows* ``[tokens, columns]``, of the slices *numbers* ``[tokens]`` where there are several."""
        rows = rows.astype(mx.float32)
        if numbers is None:
            self._squares = self._squares + mx.sum(rows * rows, axis=0)
            self._counts = self._counts + rows.shape[0]
        else:
            self._squares = self._squares.at[numbers].add(rows * rows)
            self._counts = self._counts.at[numbers].add(mx.ones(numbers.shape))
        for number, (start, end) in enumerate(self._spans):
            part = rows[:, start:end]
            self._products[number] = self._products[number] + part.T @ part

    def add_heads(self, rows: mx.array) -> None:
        """Take *rows* ``[tokens, slices, columns]``: each token meets every slice."""
        rows = rows.astype(mx.float32)
        self._squares = self._squares + mx.sum(rows * rows, axis=0)
        self._counts = self._counts + rows.shape[0]

    @property
    def arrays(self) -> list[mx.array]:
        """What has to be computed before the tokens can be let go."""
        return [self._squares, self._counts, *self._products]

    def statistics(self) -> InputStatistics:
        """Return the means."""
        moments = self._squares / mx.maximum(self._counts, 1)[:, None]
        correlations = []
        for product in self._products:
            roots = mx.rsqrt(mx.maximum(mx.diagonal(product), 1e-30))
            correlations.append((product * roots[:, None] * roots[None]).astype(mx.float16))
        return InputStatistics(moments=moments, counts=self._counts, correlations=tuple(correlations))


def statistics_file(folder: Path, path: str) -> Path:
    """Return the file in *folder* that the matrix at *path* has its statistics in."""
    parts = path.split(".")
    name = f"block-{int(parts[2]):05}" if parts[:2] == ["model", "layers"] else "head"
    return folder / f"{name}.safetensors"


def save_statistics(path: Path, statistics: Mapping[str, InputStatistics], owners: Mapping[str, str]) -> None:
    """Write *statistics* to *path*, whole and on the disk, or not at all.

    Args:
        path: a safetensors file.
        statistics: by the path of a matrix.
        owners: for each matrix, under which path its input is.
    """
    tensors: dict[str, mx.array] = {}
    for name, known in statistics.items():
        tensors[f"{name}.moments"], tensors[f"{name}.counts"] = known.moments, known.counts
        tensors |= {f"{name}.correlations.{number}": block for number, block in enumerate(known.correlations)}
    save_whole(path, tensors, {"inputs": json.dumps(dict(owners))})


def load_statistics(path: Path) -> dict[str, InputStatistics]:
    """Return what :func:`save_statistics` wrote, by the path of each matrix; nothing is read before it is used.

    Raises:
        BadCheckpoint: the file is damaged, or of something else.
    """
    try:
        tensors, metadata = load_whole(path)
        owners: dict[str, str] = json.loads(metadata["inputs"])
        known = {name: _statistics_of(name, tensors) for name in set(owners.values())}
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"{path} holds no statistics: {error}", hint="run `r1mac calibrate` again") from error
    return {name: known[owner] for name, owner in owners.items()}


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
