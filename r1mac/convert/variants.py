"""Models that differ from one in the widths of some matrices: how far the answers of each are from that one's.

All go through the blocks side by side, so that a block is read once and nothing but hidden states is kept of a model.
A model that differs only in later blocks has no hidden states of its own before them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import mlx.core as mx
from mlx import nn

from r1mac.convert.calibrated_fit import CalibratedFit
from r1mac.convert.streamed_model import EMBEDDING_PATH, StreamedModel
from r1mac.plan.memory import Quantization
from r1mac.units import GIB

_TOKENS_AT_ONCE = 128
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
            that is no head, with the rows of the text.
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
        path = self._model.head_path
        head = mx.concatenate([rows.astype(mx.float32) for _, rows in self._model.row_blocks(path)])
        if path in self._watched:
            self._watch(path, head)
        totals = dict.fromkeys(self._widths, 0.0)
        for width in {own.get(path) for own in self._widths.values()}:
            changed = head if width is None else self._quantized(path, head, width)
            mine = [name for name, own in self._widths.items() if own.get(path) == width]
            for place, state in enumerate(base):
                for start in range(0, state.shape[0], _TOKENS_AT_ONCE):
                    part = slice(start, start + _TOKENS_AT_ONCE)
                    wanted = _log_shares(self._model.normed(state[part]) @ head.T)
                    for name in mine:
                        own_state = self._states[name][place] if name in self._states else state
                        found = _log_shares(self._model.normed(own_state[part]) @ changed.T)
                        totals[name] += float(mx.sum(mx.exp(wanted) * (wanted - found)).item())  # type: ignore[arg-type]
        tokens = sum(state.shape[0] for state in base)
        return {name: total / tokens for name, total in totals.items()}

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


def _log_shares(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
