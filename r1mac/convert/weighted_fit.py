"""Affine codes, scales and biases that keep a layer's output, not its weights.

Rounding treats all weights of a group alike. What a layer gives is ``x @ w.T``, so an error of a weight counts as
much as the inputs that it meets: with ``h = E[x x^T]`` the expected squared error of an output is
``(w - v) @ h @ (w - v).T``. Two ways to make it small, both in MLX's affine format (``v = scale * code + bias`` for
each ``group_size`` inputs of a row), both row by row, so that rows may come in blocks of any size:

* :func:`fit` takes only the diagonal of ``h``: for each group a search over ranges with the weighted least squares in
  closed form.
* :func:`fit_with_feedback` takes all of ``h``: columns are rounded one after another, and what a column lost is made
  up by the columns behind it (GPTQ, arXiv:2210.17323, in the triangular form of LDLQ, arXiv:2307.13304). Each group is
  fitted when its turn comes, to weights that carry the corrections.
"""

from typing import NamedTuple

import mlx.core as mx

# Candidates for the range of a group's values: a part of the whole, and where it lies (0 lowest, 1 highest).
_RANGES = ((1.0, 0.0), (0.9, 0.5), (0.8, 0.5), (0.65, 0.5), (0.5, 0.5), (0.8, 0.0), (0.8, 1.0))
_REFINEMENTS = 3
_WORD_BITS = 32
# Columns whose errors go to each other one by one; those behind them get their errors together, by one product.
_COLUMNS_AT_ONCE = 16


class Affine(NamedTuple):
    """Quantised rows.

    Attributes:
        codes: uint32 ``[rows, columns]``, one code each, not packed.
        scales: ``[rows, groups]`` in the type that is stored.
        biases: likewise.
    """

    codes: mx.array
    scales: mx.array
    biases: mx.array

    def values(self) -> mx.array:
        """Return what the codes stand for, as float32 ``[rows, columns]``."""
        rows, columns = self.codes.shape
        codes = self.codes.astype(mx.float32).reshape(rows, self.scales.shape[1], -1)
        values = codes * self.scales.astype(mx.float32)[..., None] + self.biases.astype(mx.float32)[..., None]
        return values.reshape(rows, columns)


def pack(codes: mx.array, bits: int) -> mx.array:
    """Return uint32 *codes* ``[rows, columns]`` as ``mx.quantize`` packs them: a stream of bits, the lowest first.

    32 codes fill *bits* words, so the columns have to be a multiple of 32.
    """
    rows, columns = codes.shape
    lanes = codes.astype(mx.uint32).reshape(rows, columns // _WORD_BITS, _WORD_BITS)
    words: list[mx.array | None] = [None] * bits

    def put(word: int, value: mx.array) -> None:
        before = words[word]
        words[word] = value if before is None else before | value

    for lane in range(_WORD_BITS):
        word, shift = divmod(lane * bits, _WORD_BITS)
        put(word, lanes[..., lane] << shift)
        if shift + bits > _WORD_BITS:
            put(word + 1, lanes[..., lane] >> (_WORD_BITS - shift))
    return mx.stack([word for word in words if word is not None], axis=-1).reshape(rows, columns * bits // _WORD_BITS)


def fit(weight: mx.array, moments: mx.array, *, bits: int, group_size: int, dtype: mx.Dtype) -> Affine:
    """Return the fit that makes ``sum(moments * (weight - values) ** 2)`` small in every group.

    Args:
        weight: ``[rows, columns]`` of any floating-point type.
        moments: ``E[x**2]`` of the input, ``[columns]``.
        bits: width of a code.
        group_size: divides the columns.
        dtype: type of the stored scales and biases; what it rounds is part of the error that is made small.
    """
    rows, columns = weight.shape
    groups = columns // group_size
    weight = weight.astype(mx.float32).reshape(rows, groups, group_size)
    importance = _shares(moments.astype(mx.float32).reshape(1, groups, group_size))
    scales, biases = _fit_groups(weight, importance, levels=2**bits - 1, dtype=dtype)
    codes = _round(weight, scales, biases, 2**bits - 1)
    return Affine(
        codes.astype(mx.uint32).reshape(rows, columns), scales[..., 0].astype(dtype), biases[..., 0].astype(dtype)
    )


def feedback_factor(second_moments: mx.array) -> mx.array:
    """Return the upper triangular ``u`` with ``u.T @ u`` the inverse of *second_moments*, ``[columns, columns]``.

    Row ``j`` of it tells how an error of column ``j`` is made up by those behind it.

    Args:
        second_moments: ``E[x x^T]`` of the input, or any multiple of it, with something added to the diagonal: a
            text is a sample, and the matrix of a few tokens is singular.
    """
    h = second_moments.astype(mx.float32)
    # h = m @ m.T with m upper triangular, by the lower factor of the flipped matrix; then u is the inverse of m.
    flipped = mx.linalg.cholesky(h[::-1, ::-1], stream=mx.cpu)
    return mx.linalg.tri_inv(flipped[::-1, ::-1], upper=True, stream=mx.cpu)


def fit_with_feedback(weight: mx.array, factor: mx.array, *, bits: int, group_size: int, dtype: mx.Dtype) -> Affine:
    """Return the fit that makes ``(weight - values) @ h @ (weight - values).T`` small in every row.

    Args:
        weight: ``[rows, columns]`` of any floating-point type.
        factor: what :func:`feedback_factor` made of ``h``.
        bits: width of a code.
        group_size: divides the columns.
        dtype: type of the stored scales and biases.
    """
    columns, levels = weight.shape[1], 2**bits - 1
    rest = weight.astype(mx.float32)
    pivots = mx.diagonal(factor)
    importance = 1 / (pivots * pivots)
    codes, scales, biases = [], [], []
    for start in range(0, columns, group_size):
        stop = start + group_size
        group = rest[:, :group_size]
        share = _shares(importance[start:stop].reshape(1, group_size))
        scale, bias = _fit_groups(group, share, levels=levels, dtype=dtype)
        rounded, errors = _round_columns(group, scale, bias, factor[start:stop, start:stop], levels)
        rest = rest[:, group_size:] - errors @ factor[start:stop, stop:]
        codes.append(rounded)
        scales.append(scale.astype(dtype))
        biases.append(bias.astype(dtype))
        mx.async_eval(rest, codes[-1], scales[-1], biases[-1])  # type: ignore[no-untyped-call]
    return Affine(
        mx.concatenate(codes, axis=1).astype(mx.uint32), mx.concatenate(scales, axis=1), mx.concatenate(biases, axis=1)
    )


def descend(weight: mx.array, start: Affine, second_moments: mx.array, *, bits: int, sweeps: int) -> Affine:
    """Return *start* improved group by group and column by column, each against the errors of all others.

    Feedback only looks ahead: what the last columns lose nobody makes up, and scales are set before most errors are
    known. A sweep of coordinate descent over ``(weight - values) @ h @ (weight - values).T`` mends both; it never
    makes that sum larger but by the rounding of scales.

    Args:
        weight: ``[rows, columns]``.
        start: its fit.
        second_moments: ``h``, as the feedback had it, ``[columns, columns]``.
        bits: width of a code.
        sweeps: how often all groups are gone through.
    """
    levels, dtype, group_size = 2**bits - 1, start.scales.dtype, weight.shape[1] // start.scales.shape[1]
    error = weight.astype(mx.float32) - start.values()
    codes, scales, biases = (_by_group(array, start.scales.shape[1]) for array in start)
    for _ in range(sweeps):
        for number, begin in enumerate(range(0, weight.shape[1], group_size)):
            end = begin + group_size
            local = second_moments[begin:end, begin:end]
            off = error[:, begin:end]
            pull = error @ second_moments[:, begin:end]
            scale, bias = _refit_group(codes[number], scales[number], biases[number], pull, local, dtype)
            change = codes[number] * (scale - scales[number]) + (bias - biases[number])
            off, pull = off - change, pull - change @ local
            codes[number], off = _descend_columns(codes[number], scale, off, pull, local, levels)
            scales[number], biases[number] = scale, bias
            error = mx.concatenate([error[:, :begin], off, error[:, end:]], axis=1)
            mx.async_eval(error, codes[number], scale, bias)  # type: ignore[no-untyped-call]
    return Affine(
        mx.concatenate(codes, axis=1).astype(mx.uint32),
        mx.concatenate(scales, axis=1).astype(dtype),
        mx.concatenate(biases, axis=1).astype(dtype),
    )


def _by_group(array: mx.array, groups: int) -> list[mx.array]:
    """Return *array* ``[rows, ...]`` cut along its second axis, as float32."""
    size = array.shape[1] // groups
    return [array[:, start : start + size].astype(mx.float32) for start in range(0, array.shape[1], size)]


def _refit_group(
    codes: mx.array, scale: mx.array, bias: mx.array, pull: mx.array, local: mx.array, dtype: mx.Dtype
) -> tuple[mx.array, mx.array]:
    """Return scale and bias of one group by least squares, all other groups as they are."""
    by_codes = codes @ local
    code_code = mx.sum(by_codes * codes, axis=1, keepdims=True)
    code_one = mx.sum(by_codes, axis=1, keepdims=True)
    one_one = mx.sum(local)
    code_pull = mx.sum(codes * pull, axis=1, keepdims=True)
    one_pull = mx.sum(pull, axis=1, keepdims=True)
    determinant = code_code * one_one - code_one * code_one
    # Codes that are all alike say nothing of a scale.
    usable = determinant > 1e-6 * code_code * one_one
    determinant = mx.where(usable, determinant, 1)
    more_scale = mx.where(usable, (one_one * code_pull - code_one * one_pull) / determinant, 0)
    more_bias = mx.where(usable, (code_code * one_pull - code_one * code_pull) / determinant, one_pull / one_one)
    return _rounded(scale + more_scale, bias + more_bias, dtype)


def _descend_columns(
    codes: mx.array, scale: mx.array, off: mx.array, pull: mx.array, local: mx.array, levels: int
) -> tuple[mx.array, mx.array]:
    """Choose each code of a group anew, in turn; return codes and errors."""
    inverse = mx.where(scale == 0, 0, 1 / scale)
    new_codes = []
    for begin in range(0, codes.shape[1], _COLUMNS_AT_ONCE):
        end = begin + _COLUMNS_AT_ONCE
        part, changes = pull[:, :_COLUMNS_AT_ONCE], []
        for column in range(begin, end):
            code = codes[:, column : column + 1]
            wanted = code + part[:, :1] / local[column, column] * inverse
            new_codes.append(mx.clip(mx.round(wanted), 0, levels))
            changes.append((new_codes[-1] - code) * scale)
            part = part[:, 1:] - changes[-1] * local[column : column + 1, column + 1 : end]
        pull = pull[:, _COLUMNS_AT_ONCE:] - mx.concatenate(changes, axis=1) @ local[begin:end, end:]
    made = mx.concatenate(new_codes, axis=1)
    return made, off - (made - codes) * scale


def _round_columns(
    group: mx.array, scale: mx.array, bias: mx.array, factor: mx.array, levels: int
) -> tuple[mx.array, mx.array]:
    """Round the columns of one group in turn; return codes and the errors in units of their pivots."""
    codes, errors = [], []
    for begin in range(0, factor.shape[0], _COLUMNS_AT_ONCE):
        end = begin + _COLUMNS_AT_ONCE
        part = group[:, :_COLUMNS_AT_ONCE]
        for column in range(begin, end):
            codes.append(_round(part[:, :1], scale, bias, levels))
            errors.append((part[:, :1] - (codes[-1] * scale + bias)) / factor[column, column])
            part = part[:, 1:] - errors[-1] * factor[column : column + 1, column + 1 : end]
        group = group[:, _COLUMNS_AT_ONCE:] - mx.concatenate(errors[begin:], axis=1) @ factor[begin:end, end:]
    return mx.concatenate(codes, axis=1), mx.concatenate(errors, axis=1)


def _fit_groups(weight: mx.array, share: mx.array, *, levels: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """Return scale and bias ``[..., 1]``, rounded to *dtype*, for groups ``[..., group_size]``.

    From each range of candidates one weighted regression of the weights on their codes; the best is refined by more.
    """
    low, high = mx.min(weight, axis=-1, keepdims=True), mx.max(weight, axis=-1, keepdims=True)
    span = mx.maximum(high - low, 1e-12)
    best = _rounded(span / levels, low, dtype)
    error = _error(weight, share, *best, levels)
    for part, place in _RANGES:
        start = (part * span / levels, low + place * (1 - part) * span)
        best, error = _better(weight, share, start, best, error, levels, dtype)
    for _ in range(_REFINEMENTS):
        best, error = _better(weight, share, best, best, error, levels, dtype)
    return best


def _better(
    weight: mx.array,
    share: mx.array,
    start: tuple[mx.array, mx.array],
    best: tuple[mx.array, mx.array],
    error: mx.array,
    levels: int,
    dtype: mx.Dtype,
) -> tuple[tuple[mx.array, mx.array], mx.array]:
    """Regress on the codes that *start* gives, and keep the result where it beats *best*."""
    scale, bias = _rounded(*_regress(weight, share, _round(weight, *start, levels)), dtype)
    new_error = _error(weight, share, scale, bias, levels)
    is_better = new_error < error
    return (
        (mx.where(is_better, scale, best[0]), mx.where(is_better, bias, best[1])),
        mx.where(is_better, new_error, error),
    )


def _regress(weight: mx.array, share: mx.array, codes: mx.array) -> tuple[mx.array, mx.array]:
    """Return the weighted least squares of *weight* on *codes*; the shares of a group add up to one."""
    mean_code = mx.sum(share * codes, axis=-1, keepdims=True)
    mean_weight = mx.sum(share * weight, axis=-1, keepdims=True)
    off = share * (codes - mean_code)
    variance = mx.sum(off * codes, axis=-1, keepdims=True)
    scale = mx.sum(off * weight, axis=-1, keepdims=True) / mx.maximum(variance, 1e-20)
    return scale, mean_weight - scale * mean_code


def _rounded(scale: mx.array, bias: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    return scale.astype(dtype).astype(mx.float32), bias.astype(dtype).astype(mx.float32)


def _round(weight: mx.array, scale: mx.array, bias: mx.array, levels: int) -> mx.array:
    inverse = mx.where(scale == 0, 0, 1 / scale)
    return mx.clip(mx.round((weight - bias) * inverse), 0, levels)


def _error(weight: mx.array, share: mx.array, scale: mx.array, bias: mx.array, levels: int) -> mx.array:
    off = weight - (_round(weight, scale, bias, levels) * scale + bias)
    return mx.sum(share * off * off, axis=-1, keepdims=True)


def _shares(importance: mx.array) -> mx.array:
    """Return *importance* with each group's sum made one, and nothing of it zero."""
    floor = 1e-3 * mx.mean(importance, axis=-1, keepdims=True) + 1e-30
    importance = mx.maximum(importance, floor)
    return importance / mx.sum(importance, axis=-1, keepdims=True)
