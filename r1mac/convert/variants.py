"""Models that differ from one in the widths of some matrices: how far the answers of each are from that one's.

All go through the blocks side by side, so that a block is read once and nothing but hidden states is kept of a model.
A model that differs only in later blocks has no hidden states of its own before them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import mlx.core as mx
from mlx import nn

from r1mac.convert.calibrated_fit import CalibratedFit
from r1mac.convert.streamed_model import EMBEDDING_PATH, StreamedModel
from r1mac.plan.memory import Quantization
from r1mac.units import GIB

# Rows of a head, from all over it, that are shown to who watches.
_SAMPLE_ROWS = 256
# Of a block's matrices that several models have at one width, so much is kept; what is more is quantised again.
_KEPT_BYTES = 2 * GIB

Widths = Mapping[str, Quantization]
Watch = Callable[[str, mx.array], None]


class Variants:
    """Measures models side by side.

    Args:
        model: the one that they are compared with.
        fit: how their matrices are quantised; where it has no statistics, they are rounded.
        widths: for each model, by its name, the width of every matrix that is quantised, by its path.
        watch: is called with the path and the unquantised values of each of these matrices, once; of an embedding
            that is no head, with the rows of the text, and of a head with rows from all over it.
    """

    def __init__(
        self, model: StreamedModel, fit: CalibratedFit, widths: Mapping[str, Widths], watch: Watch | None = None
    ) -> None:
        self._model, self._fit, self._widths = model, fit, widths
        self._watch: Watch = watch or (lambda _path, _weight: None)
        self._uses = Counter((path, width) for own in widths.values() for path, width in own.items())
        self._watched = {path for path, _ in self._uses}
        self._kept: dict[tuple[str, Quantization], mx.array] = {}
        self._kept_bytes = 0
        self._states: dict[str, list[mx.array]] = {}

    def run(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, dict[str, float]]]:
        """Yield the blocks done and their number; with the last the mean divergence of each model, in nats."""
        base = list(self._embedded(sequences))
        count = self._model.block_count
        for number in range(count):
            with self._model.block(number) as block:
                base = self._through(block, number, base)
            yield number + 1, count, {}
        yield count, count, self._divergences(base)

    def _embedded(self, sequences: Sequence[Sequence[int]]) -> mx.array:
        """Return the hidden states before the first block; a quantised embedding has its own."""

        def seen(rows: mx.array) -> mx.array:
            if EMBEDDING_PATH in self._watched and self._model.head_path != EMBEDDING_PATH:
                self._watch(EMBEDDING_PATH, rows)
            return rows

        base = self._model.embedded(sequences, seen)
        for width in {own[EMBEDDING_PATH] for own in self._widths.values() if EMBEDDING_PATH in own}:
            states = self._model.embedded(sequences, partial(self._quantized, EMBEDDING_PATH, width=width))
            self._states |= {
                name: list(states) for name, own in self._widths.items() if own.get(EMBEDDING_PATH) == width
            }
        return base

    def _through(self, block: nn.Module, number: int, base: list[mx.array]) -> list[mx.array]:
        """Take every model's hidden states through a block; return the first one's."""
        modules = {f"model.layers.{number}.{path}": module for path, module in block.named_modules() if path}
        modules = {path: module for path, module in modules.items() if path in self._watched}
        for path, module in modules.items():
            self._watch(path, module.weight)
        for name, widths in self._widths.items():
            originals = {path: module.weight for path, module in modules.items() if path in widths}
            if name not in self._states and not originals:
                continue
            for path, weight in originals.items():
                modules[path].weight = self._shared(path, weight, widths[path])
            self._states[name] = self._computed(block, self._states.get(name, base))
            for path, weight in originals.items():
                modules[path].weight = weight
        self._kept, self._kept_bytes = {}, 0
        return self._computed(block, base)

    def _computed(self, block: nn.Module, states: list[mx.array]) -> list[mx.array]:
        results = []
        for state in states:
            results.append(self._model.through(block, state))
            mx.eval(results[-1])
        return results

    def _divergences(self, base: list[mx.array]) -> dict[str, float]:
        """Return how far each model is from the first one, for whose hidden states behind the last block is *base*."""
        path = self._model.head_path
        states = {name: self._normed(self._states.get(name, base)) for name in self._widths}
        self._states, normed = {}, self._normed(base)
        found = [_Divergences(state.shape[0], self._widths) for state in normed]
        row_count, sample = self._model.tensors[f"{path}.weight"].shape[0], []
        step = max(row_count // _SAMPLE_ROWS, 1)
        for first_row, block in self._model.row_blocks(path):
            rows = block.astype(mx.float32)
            sample.append(rows[-first_row % step :: step])
            wanted_widths = {own.get(path) for own in self._widths.values()}
            heads = {width: rows if width is None else self._quantized(path, rows, width) for width in wanted_widths}
            for place, state in enumerate(normed):
                # One model's logits at a time are in memory.
                logits = ((name, states[name][place] @ heads[own.get(path)].T) for name, own in self._widths.items())
                found[place].add(state @ rows.T, logits)
        if path in self._watched:
            self._watch(path, mx.concatenate(sample))
        tokens = sum(state.shape[0] for state in normed)
        return {name: sum(one.total(name) for one in found) / tokens for name in self._widths}

    def _normed(self, states: list[mx.array]) -> list[mx.array]:
        made = [self._model.normed(state) for state in states]
        mx.eval(made)
        return made

    def _shared(self, path: str, weight: mx.array, width: Quantization) -> mx.array:
        """Return what the matrix becomes, which is made once for all models that want it, as far as there is room."""
        if (made := self._kept.get((path, width))) is not None:
            return made
        made = self._quantized(path, weight, width)
        if self._uses[path, width] > 1 and self._kept_bytes + made.nbytes <= _KEPT_BYTES:
            self._kept[path, width] = made
            self._kept_bytes += made.nbytes
        return made

    def _quantized(self, path: str, weight: mx.array, width: Quantization) -> mx.array:
        """Return what the matrix, or some of its rows, becomes at *width*, in its own type."""
        made = quantized(self._fit, path, weight, width).astype(weight.dtype)
        mx.eval(made)
        return made


def quantized(fit: CalibratedFit, path: str, weight: mx.array, width: Quantization) -> mx.array:
    """Return float32 values that *weight* has after quantising: fitted, or rounded where *fit* has no statistics."""
    bits, group_size, dtype = width.bits, width.group_size, mx.bfloat16
    if fit.can_fit(path, weight.shape, width):
        codes, scales, biases = fit.quantize(path, weight.shape, 0, width, dtype, weight)
    else:
        codes, scales, biases = mx.quantize(weight.astype(dtype), group_size=group_size, bits=bits)
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    values = mx.dequantize(codes, scales, biases, group_size=group_size, bits=bits)
    return values.reshape(weight.shape)


class _Divergences:
    """The divergences of some models' next tokens from another's, summed up as logits come for some words at a time.

    Kept are, for each token, the logarithm of all exponentials so far and, by the other's shares of the words so far,
    the mean of what its logits are above a model's.
    """

    def __init__(self, tokens: int, names: Iterable[str]) -> None:
        self._log_total = mx.full(tokens, -mx.inf)
        self._log_totals = {name: mx.full(tokens, -mx.inf) for name in names}
        self._means = {name: mx.zeros(tokens) for name in names}

    def add(self, wanted: mx.array, found: Iterable[tuple[str, mx.array]]) -> None:
        """Take the logits ``[tokens, words]`` of further words, and each model's own."""
        log_total = mx.logaddexp(self._log_total, mx.logsumexp(wanted, axis=-1))
        shares, shrunk = mx.exp(wanted - log_total[:, None]), mx.exp(self._log_total - log_total)
        for name, logits in found:
            self._means[name] = self._means[name] * shrunk + mx.sum(shares * (wanted - logits), axis=-1)
            self._log_totals[name] = mx.logaddexp(self._log_totals[name], mx.logsumexp(logits, axis=-1))
            mx.eval(self._means[name], self._log_totals[name])
        self._log_total = log_total
        mx.eval(log_total)

    def total(self, name: str) -> float:
        """Return the sum of a model's divergences over the tokens, in nats."""
        return float(mx.sum(self._means[name] - self._log_total + self._log_totals[name]).item())  # type: ignore[arg-type]
