"""What a model's answers lose when matrices of one kind are quantised, measured: the Kullback-Leibler divergence.

How much a matrix may lose cannot be told from the matrix: errors of the same size matter ten times more in keys and
values than in queries. So each kind of matrix, in each third of the layers, is quantised by itself, and a text goes
through the otherwise unquantised model. All such models go through the blocks side by side: a block is read once.
Divergences of groups add up, nearly, to that of quantising all of them.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from r1mac.convert.calibrated_fit import CalibratedFit
from r1mac.convert.sources import Source
from r1mac.convert.streamed_model import StreamedModel
from r1mac.convert.weighted_fit import fit
from r1mac.plan.memory import Quantization

# Groups of kinds are measured apart for each of so many parts of the model's depth.
_DEPTHS = 3
# Rows of a matrix of which it is measured what other widths lose.
_SAMPLE_ROWS = 64
_TOKENS_AT_ONCE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What quantising costs.

    Attributes:
        width: at which it was measured.
        kl_nats: of each group's model from the unquantised one, by the group's name.
        groups: the group of each matrix, by its path.
        loss: of each matrix, the weighted squared error at other widths, by its path.
    """

    width: Quantization
    kl_nats: dict[str, float] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    loss: dict[str, dict[Quantization, float]] = field(default_factory=dict)

    def cost(self, path: str, width: Quantization) -> float:
        """Return the divergence that the matrix at *path* adds at *width*: its share of its group's, scaled.

        Within a group all matrices count alike, and an error's square goes straight into the divergence.
        """
        group = self.groups[path]
        share = self.kl_nats[group] / sum(other == group for other in self.groups.values())
        losses = self.loss[path]
        return share * losses[width] / max(losses[self.width], 1e-30)


def as_data(known: Sensitivity) -> dict[str, Any]:
    """Return *known* as JSON has it."""
    return {
        "width": list(known.width),
        "kl_nats": known.kl_nats,
        "groups": known.groups,
        "loss": {path: [[list(width), loss] for width, loss in losses.items()] for path, losses in known.loss.items()},
    }


def from_data(data: Mapping[str, Any]) -> Sensitivity:
    """Return what :func:`as_data` was given."""
    return Sensitivity(
        width=Quantization(*data["width"]),
        kl_nats=data["kl_nats"],
        groups=data["groups"],
        loss={path: {Quantization(*width): loss for width, loss in losses} for path, losses in data["loss"].items()},
    )


def group_of(path: str, block_count: int) -> str:
    """Return the group of the matrix at *path*: its kind and its depth, such as ``mlp.down_proj 1/3``."""
    parts = path.split(".")
    if parts[:2] != ["model", "layers"]:
        return path
    return f"{'.'.join(parts[3:])} {int(parts[2]) * _DEPTHS // block_count + 1}/{_DEPTHS}"


def measure_sensitivity(
    source: Source,
    statistics: Path,
    sequences: Sequence[Sequence[int]],
    *,
    width: Quantization,
    others: Sequence[Quantization],
) -> Iterator[tuple[int, int, Sensitivity]]:
    """Yield the blocks done, their number, and what is known so far; the last is whole.

    Args:
        source: the model.
        statistics: folder of what ``calibrate`` measured of it.
        sequences: token ids of one length; a thousand tokens tell the groups apart.
        width: what every group is quantised to, in its turn.
        others: widths whose losses are measured beside.
    """
    measuring = _Measuring(StreamedModel(source), statistics, width, others)
    yield from measuring.run(sequences)


class _Measuring:
    def __init__(
        self, model: StreamedModel, statistics: Path, width: Quantization, others: Sequence[Quantization]
    ) -> None:
        self._model, self._width, self._others = model, width, (width, *others)
        self._fit = CalibratedFit(statistics, sweeps=0)
        self._known = Sensitivity(width=width)
        # A model that differs only in later blocks has no hidden states of its own yet.
        self._states: dict[str, list[mx.array]] = {}

    def run(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, Sensitivity]]:
        base = list(self._model.embedded(sequences))
        count = self._model.block_count
        for number in range(count):
            with self._model.block(number) as block:
                base = self._through(block, number, base)
            yield number + 1, count, self._known
        self._measure_head(base)
        yield count, count, self._known

    def _through(self, block: nn.Module, number: int, base: list[mx.array]) -> list[mx.array]:
        prefix = f"model.layers.{number}"
        changed: dict[str, dict[str, mx.array]] = defaultdict(dict)
        for path, module in block.named_modules():
            full = f"{prefix}.{path}"
            if path and "weight" in module and self._can_quantize(full, module.weight):
                group = group_of(full, self._model.block_count)
                self._known.groups[full] = group
                self._known.loss[full] = self._losses(full, module.weight)
                changed[group][path] = module.weight
        for group in {*self._states, *changed}:
            before = self._states.get(group, base)
            modules = {path: module for path, module in block.named_modules() if path in changed.get(group, {})}
            for path, module in modules.items():
                module.weight = self._quantized(f"{prefix}.{path}", module.weight)
            self._states[group] = self._computed(block, before)
            for path, module in modules.items():
                module.weight = changed[group][path]
        return self._computed(block, base)

    def _computed(self, block: nn.Module, states: list[mx.array]) -> list[mx.array]:
        results = []
        for state in states:
            results.append(self._model.through(block, state))
            mx.eval(results[-1])
        return results

    def _measure_head(self, base: list[mx.array]) -> None:
        path = self._model.head_path
        head = mx.concatenate([rows.astype(mx.float32) for _, rows in self._model.row_blocks(path)])
        normed = [self._model.normed(state) for state in base]
        for group, states in self._states.items():
            own = [self._model.normed(state) for state in states]
            self._known.kl_nats[group] = _divergence(normed, head, own, head)
        if self._can_quantize(path, head):
            self._known.groups[path], self._known.loss[path] = path, self._losses(path, head)
            self._known.kl_nats[path] = _divergence(normed, head, normed, self._quantized(path, head))

    def _can_quantize(self, path: str, weight: mx.array) -> bool:
        divides = weight.shape[-1] % self._width.group_size == 0
        return divides and self._fit.can_fit(path, weight.shape, self._width)

    def _quantized(self, path: str, weight: mx.array) -> mx.array:
        """Return what the matrix becomes at the measured width, in its own type."""
        width, dtype = self._width, mx.bfloat16
        codes, scales, biases = self._fit.quantize(path, weight.shape, 0, width, dtype, weight)
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        values = mx.dequantize(codes, scales, biases, group_size=width.group_size, bits=width.bits)
        result = values.reshape(weight.shape).astype(weight.dtype)
        mx.eval(result)
        return result

    def _losses(self, path: str, weight: mx.array) -> dict[Quantization, float]:
        rows = weight.reshape(-1, weight.shape[-1])
        rows = rows[:: max(rows.shape[0] // _SAMPLE_ROWS, 1)][:_SAMPLE_ROWS].astype(mx.float32)
        moments = self._fit.moments(path)
        found = {}
        for width in self._others:
            if rows.shape[-1] % width.group_size == 0:
                made = fit(rows, moments, bits=width.bits, group_size=width.group_size, dtype=mx.bfloat16)
                found[width] = float(mx.sum(moments * (rows - made.values()) ** 2).item())  # type: ignore[arg-type]
        return found


def _divergence(wanted: Sequence[mx.array], wanted_head: mx.array, states: Sequence[mx.array], head: mx.array) -> float:
    """Return the mean divergence of what *head* makes of *states* from what *wanted_head* makes of *wanted*."""
    total, count = 0.0, 0
    for one, two in zip(wanted, states, strict=True):
        for start in range(0, one.shape[0], _TOKENS_AT_ONCE):
            theirs = _log_shares(one[start : start + _TOKENS_AT_ONCE] @ wanted_head.T)
            mine = _log_shares(two[start : start + _TOKENS_AT_ONCE] @ head.T)
            total += float(mx.sum(mx.exp(theirs) * (theirs - mine)).item())  # type: ignore[arg-type]
        count += one.shape[0]
    return total / count


def _log_shares(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def total_cost(known: Sensitivity, widths: Mapping[str, Quantization]) -> float:
    """Return the divergence that *widths*, by the path of each matrix, add up to."""
    return sum(known.cost(path, width) for path, width in widths.items())
