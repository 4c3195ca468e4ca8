"""How much of an adapter is left after rounding and quantising: measured on the converted weights themselves."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from r1mac.convert.adapter import AdaptedSource, Sample
from r1mac.convert.mlx_quantized import MLXQuantizedTensor
from r1mac.convert.names import sourcing_of
from r1mac.convert.safetensors_source import SafetensorsSource
from r1mac.convert.sources import Source

_LITTLE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterEffect:
    """What an adapter changes, and what of it the converted model has.

    With D the change of the unquantised rows and E that of the quantised ones (the converted model less what the
    base alone would have become): *survival* is <D, E> / <D, D>, *correlation* <D, E> / (|D| |E|).

    Attributes:
        changed_count: matrices that the adapters change.
        zero_count: matrices that they name and leave as they are.
        relative_change: mean of |D| / |W|.
        survival: share of the change that is there; None where nothing could be measured.
        correlation: how much of E is the change, and not rounding, which differs with any change of a matrix.
    """

    changed_count: int
    zero_count: int
    relative_change: float
    survival: float | None
    correlation: float | None

    @property
    def noise(self) -> float:
        """The part of E that is not D, as a multiple of |D|."""
        if not self.survival or not self.correlation:
            return 0.0
        return abs(self.survival) * math.sqrt(max(1 / self.correlation**2 - 1, 0.0))

    @property
    def is_lost(self) -> bool:
        """Whether less than half of the change is left, or there was none."""
        return self.changed_count == 0 or (self.survival is not None and self.survival < _LITTLE)

    def sentence(self) -> str:
        """Return the effect in a sentence for a person."""
        zeros = f" ({self.zero_count} more are zero)" if self.zero_count else ""
        if self.changed_count == 0:
            return "the adapter changes nothing: all its matrices are zero. Was it saved before it was trained?"
        text = f"the adapter changes {self.changed_count} tensor{'s' * (self.changed_count > 1)}{zeros}"
        if self.survival is None:
            return f"{text}; what of that is in the converted weights could not be measured"
        text = (
            f"{text}, by {self.relative_change:.2%} on average; {min(self.survival, 1):.0%} of that is in the "
            f"converted weights, beside rounding of {self.noise:.1f} times its size"
        )
        return f"{text}: most of its effect is lost, so use more bits" if self.is_lost else text


def measure_effect(source: AdaptedSource, converted: Path) -> AdapterEffect:
    """Measure what the adapters of *source* do in the model that was *converted* from it.

    Some rows of the base, as they were before and after the merge, are compared with the converted files'.
    Matrices that MLX stores otherwise than the source (MLA's halves) are counted and not measured.
    """
    changed, result = source.changed_names, SafetensorsSource(converted)
    places = _places(source.original, result)
    samples = {name: source.sample_of(name) for name in sorted(changed & places.keys())}
    dots = [_dots(sample, result, places[name]) for name, sample in samples.items() if sample is not None]
    relative = [(dd / ww) ** 0.5 for dd, _, _, ww in dots if ww > 0]
    wanted, common, found = (sum(dot[index] for dot in dots) for index in range(3))
    return AdapterEffect(
        changed_count=len(changed),
        zero_count=len(source.unchanged_names),
        relative_change=sum(relative) / max(len(relative), 1),
        survival=common / wanted if wanted > 0 else None,
        correlation=common / (wanted * found) ** 0.5 if wanted > 0 and found > 0 else 0.0,
    )


def _places(original: Source, result: SafetensorsSource) -> dict[str, tuple[str, int | None]]:
    """Return where each of the source's tensors is in the converted model: name, and index in a stack."""
    available, places = original.shapes(), {}
    experts = int(original.config.get("n_routed_experts") or 0)
    for name in result.shapes():
        sourcing = sourcing_of(name, available, expert_count=experts)
        for index, source_name in enumerate(sourcing.names):
            if sourcing.kind in {"same", "stack"} and source_name in available:
                places[source_name] = (name, index if sourcing.kind == "stack" else None)
    return {
        name: place
        for name, place in places.items()
        if place[1] is not None or result.shapes()[place[0]] == available[name]
    }


def _dots(
    sample: Sample, result: SafetensorsSource, place: tuple[str, int | None]
) -> tuple[float, float, float, float]:
    """Return <D, D>, <D, E>, <E, E> and <W, W> of a sample of rows."""
    where, expert = place
    rows, columns = sample.after.shape
    stop = sample.start + rows
    found = result.rows(where, sample.start, stop) if expert is None else result.rows(where, expert, expert + 1)[0]
    after = (found if expert is None else found[sample.start : stop])[:, :columns]
    stored = result.stored(where)
    alone = sample.before.astype(after.dtype)
    if isinstance(stored, MLXQuantizedTensor):
        alone = _requantized(alone, stored)
    base = sample.before.astype(mx.float32)
    change, kept = sample.after.astype(mx.float32) - base, after.astype(mx.float32) - alone.astype(mx.float32)
    return _dot(change, change), _dot(change, kept), _dot(kept, kept), _dot(base, base)


def _dot(a: mx.array, b: mx.array) -> float:
    return float(mx.sum(a * b).item())  # type: ignore[arg-type]


def _requantized(values: mx.array, stored: MLXQuantizedTensor) -> mx.array:
    """Return what *values* would be if they had been quantised as *stored* was."""
    settings: dict[str, Any] = {"group_size": stored.group_size, "bits": stored.bits, "mode": stored.mode}
    codes, scales, *biases = mx.quantize(values, **settings)
    return mx.dequantize(codes, scales, biases[0] if biases else None, **settings)
