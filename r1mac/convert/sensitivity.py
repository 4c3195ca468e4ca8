"""What a model's answers lose when matrices of one kind are quantised, measured: the Kullback-Leibler divergence.

How much a matrix may lose cannot be told from the matrix: errors of the same size matter ten times more in keys and
values than in queries. So each kind of matrix, in each third of the layers, is quantised by itself, and a text goes
through the otherwise unquantised model (``convert.variants``). Divergences of groups add up, nearly, to that of
quantising all of them. An embedding that is the head too counts as both: it changes what goes in and what comes out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import Any

import mlx.core as mx

from r1mac.convert.calibrated_fit import CalibratedFit
from r1mac.convert.sources import Source
from r1mac.convert.streamed_model import EMBEDDING_PATH, StreamedModel
from r1mac.convert.variants import Variants, quantized
from r1mac.convert.weighted_fit import fit as quick_fit
from r1mac.plan.memory import Quantization

# Groups of kinds are measured apart for each of so many parts of the model's depth.
_DEPTHS = 3
# Rows of a matrix of which it is measured what other widths lose.
_SAMPLE_ROWS = 64


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
    model, fit = StreamedModel(source), CalibratedFit(statistics, sweeps=0)
    known = Sensitivity(width=width, groups=_groups(model, fit, width))

    def watch(path: str, weight: mx.array) -> None:
        known.loss[path] = _losses(fit, path, weight, (width, *others))

    widths: dict[str, dict[str, Quantization]] = {group: {} for group in known.groups.values()}
    for path, group in known.groups.items():
        widths[group][path] = width
    for done, total, kl_nats in Variants(model, fit, widths, watch).run(sequences):
        known.kl_nats.update(kl_nats)
        yield done, total, known


def _groups(model: StreamedModel, fit: CalibratedFit, width: Quantization) -> dict[str, str]:
    """Return the group of each matrix that can be quantised: those with statistics, and the embedding."""
    found = {}
    for name, tensor in model.tensors.items():
        path = name.removesuffix(".weight")
        divides = len(tensor.shape) > 1 and tensor.shape[-1] % width.group_size == 0
        if divides and (path == EMBEDDING_PATH or fit.can_fit(path, tensor.shape, width)):
            found[path] = group_of(path, model.block_count)
    return found


def _losses(
    fit: CalibratedFit, path: str, weight: mx.array, widths: Sequence[Quantization]
) -> dict[Quantization, float]:
    """Return the weighted squared error of some rows at each of *widths*.

    It is that of the quick fit, which knows no feedback: from one width to another both lose alike (docs/lab.md).
    """
    rows = weight.reshape(-1, weight.shape[-1])
    rows = rows[:: max(rows.shape[0] // _SAMPLE_ROWS, 1)][:_SAMPLE_ROWS].astype(mx.float32)
    found = {}
    for width in widths:
        if rows.shape[-1] % width.group_size == 0:
            if fit.can_fit(path, weight.shape, width):
                moments = fit.moments(path)
                size = {"bits": width.bits, "group_size": width.group_size}
                made = quick_fit(rows, moments, **size, dtype=mx.bfloat16).values()
            else:
                moments, made = mx.ones(rows.shape[-1]), quantized(fit, path, rows, width)
            found[width] = float(mx.sum(moments * (rows - made) ** 2).item())  # type: ignore[arg-type]
    return found


def total_cost(known: Sensitivity, widths: Mapping[str, Quantization]) -> float:
    """Return the divergence that *widths*, by the path of each matrix, add up to, as far as it is known."""
    return sum(known.cost(path, width) for path, width in widths.items() if path in known.groups)


def doubted(known: Sensitivity, sizes: Mapping[str, int]) -> Sensitivity:
    """Return *known* with differences between groups half believed: choices by it are nearer to one width for all.

    A group's divergence for a weight becomes the geometric mean of its own and that of all groups together.

    Args:
        known: what was measured.
        sizes: weights of each matrix, by its path.
    """
    counts = dict.fromkeys(known.kl_nats, 0)
    for path, group in known.groups.items():
        counts[group] += sizes[path]
    mean = sum(known.kl_nats.values()) / sum(counts.values())
    return replace(
        known, kl_nats={group: sqrt(max(kl, 0.0) * mean * counts[group]) for group, kl in known.kl_nats.items()}
    )
