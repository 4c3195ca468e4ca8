"""Blocks of a tensor's rows become codes, scales and biases, fitted to the inputs that the tensor meets."""

import hashlib
from math import prod
from pathlib import Path

import mlx.core as mx

from r1mac.convert.input_statistics import RECORD_NAME, InputStatistics, load_statistics, statistics_file
from r1mac.convert.weighted_fit import Affine, descend, feedback_factor, fit, fit_with_feedback, pack
from r1mac.errors import BadCheckpoint
from r1mac.plan.memory import Quantization

# Sweeps after the feedback: the first ones bring most of what there is to gain.
SWEEPS = 2
# A text is a sample: half of the correlations are believed where it has so many tokens for each channel (docs/lab.md).
_TOKENS_A_CHANNEL = 10
# Of the mean: the least that a channel counts, so that one that the text never stirred keeps its weights.
_LEAST_SHARE = 1e-3
# Raised when the same statistics and weights give other codes or scales.
_METHOD = 2
# Axes of correlations that each slice has its own of.
_APART = 3


class CalibratedFit:
    """Quantises rows by the statistics in a folder that ``convert.calibration`` made.

    The statistics of one of the model's blocks, and what was made of them, are in memory at a time.

    Args:
        folder: of the statistics.
        sweeps: of coordinate descent after the feedback; none is three times as fast, and nearly as good.
    """

    def __init__(self, folder: Path, *, sweeps: int = SWEEPS) -> None:
        self._folder, self._sweeps = folder, sweeps
        self._file: Path | None = None
        self._known: dict[str, InputStatistics] = {}
        self._factors: dict[tuple[int, int], list[mx.array]] = {}

    @property
    def identity(self) -> str:
        """A text that is another for other statistics, or another way to fit."""
        record = (self._folder / RECORD_NAME).read_bytes()
        return f"{hashlib.sha256(record).hexdigest()} {_METHOD}"

    def can_fit(self, path: str, shape: tuple[int, ...], width: Quantization) -> bool:
        """Tell whether the matrix *path* has statistics, and *width* scales that may be chosen.

        Raises:
            BadCheckpoint: the statistics are of a matrix of another shape.
        """
        known = self._statistics(path)
        if known is None or width.mode != "affine":
            return False
        slices, columns = known.moments.shape
        if columns != shape[-1] or slices not in {1, prod(shape[:-2])}:
            raise BadCheckpoint(
                f"the statistics in {self._folder} are not of this model: {path} is {list(shape)}, and they are of "
                f"{slices} times {columns} inputs",
                hint="run `r1mac calibrate` with the weights that are converted",
            )
        return True

    def quantize(
        self, path: str, shape: tuple[int, ...], first_row: int, width: Quantization, dtype: mx.Dtype, values: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Return packed codes, scales and biases of some rows, as ``mx.quantize`` does.

        Args:
            path: the matrix, without ``.weight``.
            shape: of the whole of it, ``[rows, columns]`` or ``[slices, rows, columns]``.
            first_row: of *values*, the leading axes taken as one.
            width: bits and group size.
            dtype: type of scales and biases.
            values: ``[..., columns]``.
        """
        known = self._statistics(path)
        assert known is not None, "can_fit comes first"
        rows = values.reshape(-1, shape[-1]).astype(mx.float32)
        slice_rows = shape[-2] if known.moments.shape[0] > 1 else first_row + rows.shape[0]
        parts, start = [], 0
        while start < rows.shape[0]:
            number = (first_row + start) // slice_rows
            stop = min((number + 1) * slice_rows - first_row, rows.shape[0])
            parts.append(self._fit(known, number, rows[start:stop], width, dtype))
            start = stop
        codes, scales, biases = (mx.concatenate(list(arrays)) for arrays in zip(*parts, strict=True))
        return pack(codes, width.bits), scales, biases

    def moments(self, path: str) -> mx.array:
        """Return ``E[x**2]`` ``[columns]`` of the matrix *path*, over all its slices."""
        known = self._statistics(path)
        assert known is not None, "can_fit comes first"
        return known.common_moments()

    def _fit(self, known: InputStatistics, number: int, rows: mx.array, width: Quantization, dtype: mx.Dtype) -> Affine:
        moments = known.slice_moments(number)
        moments = mx.maximum(moments, _LEAST_SHARE * mx.mean(moments) + 1e-30)
        blocks = [correlation.shape[-1] for correlation in known.correlations]
        if not blocks or any(columns % width.group_size for columns in blocks):
            return fit(rows, moments, bits=width.bits, group_size=width.group_size, dtype=dtype)
        made, start = [], 0
        for correlation, factor in zip(known.correlations, self._factors_of(known, number), strict=True):
            end = start + correlation.shape[-1]
            roots = mx.sqrt(moments[start:end])
            part = rows[:, start:end]
            first = fit_with_feedback(part, factor / roots, bits=width.bits, group_size=width.group_size, dtype=dtype)
            products = _believed(known, correlation, number) * roots * roots[:, None]
            made.append(descend(part, first, products, bits=width.bits, sweeps=self._sweeps))
            start = end
        return Affine(*(mx.concatenate(list(arrays), axis=1) for arrays in zip(*made, strict=True)))

    def _factors_of(self, known: InputStatistics, number: int) -> list[mx.array]:
        """Return the feedback factors of the correlations of one slice; all experts share them."""
        key = (id(known), number if known.correlations[0].ndim == _APART else 0)
        if key not in self._factors:
            self._factors[key] = [feedback_factor(_believed(known, each, number)) for each in known.correlations]
            mx.eval(self._factors[key])
        return self._factors[key]

    def _statistics(self, path: str) -> InputStatistics | None:
        file = statistics_file(self._folder, path)
        if file != self._file:
            self._known = load_statistics(file) if file.exists() else {}
            self._file, self._factors = file, {}
        return self._known.get(path)


def _believed(known: InputStatistics, correlation: mx.array, number: int) -> mx.array:
    """Return the correlations of one slice as far as they are believed; a channel's own mean square stays what it is.

    Where slices share them, the tokens of all tell of them.
    """
    count = mx.sum(known.counts)
    if correlation.ndim == _APART:
        correlation, count = correlation[number], known.counts[number]
    columns = correlation.shape[-1]
    belief = count / (count + _TOKENS_A_CHANNEL * columns)
    return belief * correlation.astype(mx.float32) + (1 - belief) * mx.eye(columns)
