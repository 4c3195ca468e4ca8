"""``r1mac convert --bits-per-weight`` and ``--fit``: bytes become a recipe, by what each kind of matrix costs.

Estimates that widths are chosen by are uncertain, and what was underrated is what a choice leans on. So the choice, a
cautious one and the best width for all are measured side by side on text that the estimates know nothing of, and the
one that loses least is taken.
"""

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from r1mac.durable import write_whole
from r1mac.errors import writing_to
from r1mac.machine.base import Machine
from r1mac.plan.memory import Quantization
from r1mac.prepare.calibrating import Quality, calibrate_source, is_whole
from r1mac.prepare.files import PrepareEvent, Progress
from r1mac.prepare.width_choices import UNIFORM, WIDTHS, Room, Widths, candidates, room_for

if TYPE_CHECKING:
    from r1mac.convert.sensitivity import Sensitivity
    from r1mac.convert.sources import Source
    from r1mac.plan.recipe import Recipe

# Some of the calibration text is enough to tell kinds of matrices from each other, and some more to compare choices.
_SEQUENCES, _COMPARED_SEQUENCES, _TOKENS = 3, 6, 256
# Raised when what is kept in the statistics' folder means something else.
_FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a model's weights may take: one of the first three.

    Attributes:
        bits_per_weight: mean over all values of the matrices that are quantised, with scales and biases; what stays
            wide (norms, routers) comes on top. One width for all takes just its own: 4 bits in groups of 64 are 4.5.
        size_bytes: of all weight files but those of a prediction layer, headers included.
        uniform: what this width for all takes; what the choice is not about has it, as a prediction layer.
        dtype: type of scales and of what is not quantised; None keeps the source's.
    """

    bits_per_weight: float | None = None
    size_bytes: int | None = None
    uniform: Quantization | None = None
    dtype: str | None = None


class Chosen(NamedTuple):
    """A recipe within a budget.

    Attributes:
        recipe: what was chosen.
        expected_kl_nats: what the matrices' measured divergences add up to.
        size_bytes: of the weights that it makes.
        compared_kl_nats: divergence of each choice that was compared, the one taken among them; empty where there
            was nothing to compare.
    """

    recipe: "Recipe"
    expected_kl_nats: float
    size_bytes: int
    compared_kl_nats: Mapping[str, float]


def choose_within(
    source: "Source", budget: Budget, statistics: Path, machine: Machine, *, title: str, text_file: Path | None = None
) -> Generator[PrepareEvent, None, Chosen]:
    """Return the widths that lose least within *budget*; what is measured for it is kept in *statistics*.

    Args:
        source: the model.
        budget: what its weights may take.
        statistics: folder that ``r1mac calibrate`` made, or makes here; the text that it kept is measured with.
        machine: this computer.
        title: the model's name for a person.
        text_file: what to calibrate with, where that is not done; None for the text that r1mac has.

    Raises:
        BadRecipe: no widths are small enough, or no matrix can be quantised in groups of 64.
        R1MacError: as :func:`calibrate_source` does.
    """
    from r1mac.convert.calibration import kept_sequences
    from r1mac.convert.layout import plan_layout
    from r1mac.convert.recipe import plain
    from r1mac.formats.safetensors import lay_out

    if not is_whole(statistics):
        yield from calibrate_source(source, statistics, machine, title=title, text_file=text_file)
    layout = plan_layout(source, plain(bits=16, dtype=budget.dtype))
    # What is written has the names, if not the offsets, of any other conversion with scales.
    header, _ = lay_out(plan_layout(source, plain(bits=4, dtype=budget.dtype)).stored(), {})
    size_bytes = None if budget.size_bytes is None else budget.size_bytes - len(header)
    room = room_for(layout, bits_per_weight=budget.bits_per_weight, size_bytes=size_bytes, uniform=budget.uniform)
    measured_at = _measured_width(room.bits_per_weight)
    weighed, compared = _apart(kept_sequences(statistics))
    known = yield from _sensitivity(source, statistics, measured_at, weighed, title=title)
    choices = candidates(room, known, title=title)
    kl_nats: dict[str, float] = {}
    if len(choices) > 1:
        kl_nats = yield from _compared(source, statistics, choices, compared, title=title)
    return _chosen(room, known, choices, kl_nats, budget)


def choose_recipe_within(
    path: Path, output: Path, budget: Budget, quality: Quality, machine: Machine, *, adapters: Sequence[Path] = ()
) -> Generator[PrepareEvent, None, tuple[Chosen, Path, Path]]:
    """Return what :func:`choose_within` chose for the model at *path*, the statistics' folder, and the recipe's file.

    Both are kept beside *output*, the folder that the model is going to be converted to.

    Raises:
        R1MacError: as :func:`choose_within` does, or the recipe cannot be written.
    """
    from r1mac.convert.allocation import recipe_text
    from r1mac.convert.sources import open_source

    statistics = quality.statistics or output.with_name(f"{output.name}-statistics")
    chosen = yield from choose_within(
        open_source(path, adapters), budget, statistics, machine, title=path.name, text_file=quality.text_file
    )
    file = output.with_name(f"{output.name}.toml")
    with writing_to(file):
        write_whole(file, recipe_text(chosen.recipe))
    return chosen, statistics, file


def _measured_width(bits_per_weight: float) -> Quantization:
    """Return a width near the budget: what is measured there need not be stretched far."""
    return Quantization(bits=min(max(int(bits_per_weight - 0.25), 2), 4), group_size=64)


def _apart(sequences: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Return what matrices are weighed with, and what choices are compared with: other parts of the same text."""
    step = max(len(sequences) // _SEQUENCES, 1)
    weighed = list(sequences[::step][:_SEQUENCES])
    others = [ids for number, ids in enumerate(sequences) if number % step or number >= step * _SEQUENCES]
    if others:
        compared = others[:: max(len(others) // _COMPARED_SEQUENCES, 1)][:_COMPARED_SEQUENCES]
        return [ids[:_TOKENS] for ids in weighed], [ids[:_TOKENS] for ids in compared]
    half = len(sequences[0]) // 2
    return [ids[:half][:_TOKENS] for ids in weighed], [ids[half:][:_TOKENS] for ids in weighed]


def _sensitivity(
    source: "Source", statistics: Path, width: Quantization, sequences: Sequence[Sequence[int]], *, title: str
) -> "Generator[PrepareEvent, None, Sensitivity]":
    from r1mac.convert.sensitivity import as_data, from_data, measure_sensitivity

    path = statistics / f"sensitivity-{width.bits}bit.json"
    if (found := _kept(path, statistics)) is not None:
        return from_data(found)
    for done, total, known in measure_sensitivity(source, statistics, sequences, width=width, others=WIDTHS):
        yield Progress(task="weigh", title=title, done=done, total=total)
        measured = known
    _keep(path, statistics, as_data(measured))
    return measured


def _compared(
    source: "Source",
    statistics: Path,
    choices: Mapping[str, Widths],
    sequences: Sequence[Sequence[int]],
    *,
    title: str,
) -> Generator[PrepareEvent, None, dict[str, float]]:
    """Return the divergence of each of *choices*, in nats."""
    from r1mac.convert.calibrated_fit import CalibratedFit
    from r1mac.convert.streamed_model import StreamedModel
    from r1mac.convert.variants import Variants

    identity = json.dumps([{name: sorted(widths.items()) for name, widths in choices.items()}, sequences])
    path = statistics / f"compared-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
    if (found := _kept(path, statistics)) is not None:
        return dict(found)
    # The sweeps that a conversion adds cost as much again and change all choices alike.
    variants = Variants(StreamedModel(source), CalibratedFit(statistics, sweeps=0), choices)
    for done, total, kl_nats in variants.run(sequences):
        yield Progress(task="compare", title=title, done=done, total=total)
        measured = kl_nats
    _keep(path, statistics, measured)
    return measured


def _kept(path: Path, statistics: Path) -> dict[str, Any] | None:
    """Return what :func:`_keep` wrote to *path*, where it is of the same statistics."""
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("format") != _FORMAT or found.get("statistics") != _record(statistics):
        return None
    measured: dict[str, Any] = found["measured"]
    return measured


def _keep(path: Path, statistics: Path, measured: dict[str, Any]) -> None:
    write_whole(
        path, json.dumps({"format": _FORMAT, "statistics": _record(statistics), "measured": measured}, indent=1)
    )


def _record(statistics: Path) -> dict[str, Any]:
    from r1mac.convert.input_statistics import RECORD_NAME

    record: dict[str, Any] = json.loads((statistics / RECORD_NAME).read_text(encoding="utf-8"))
    return record


def _chosen(
    room: Room,
    known: "Sensitivity",
    choices: Mapping[str, Widths],
    kl_nats: Mapping[str, float],
    budget: Budget,
) -> Chosen:
    """Return the choice that loses least; where two lose alike, the first one."""
    from r1mac.convert.allocation import as_recipe
    from r1mac.convert.sensitivity import total_cost

    name = min(choices, key=lambda name: kl_nats.get(name, 0.0))
    widths = choices[name]
    matrix_bytes = room.bytes_of(widths)
    bits_per_weight = 8 * matrix_bytes / room.weight_count
    recipe = as_recipe(
        dict(widths),
        name=f"{bits_per_weight:.2f}bpw",
        summary=f"{bits_per_weight:.3f} bits a weight: {_reason(name, kl_nats)}",
        dtype=budget.dtype,
        default=budget.uniform,
    )
    return Chosen(recipe, total_cost(known, widths), room.wide_bytes + matrix_bytes, kl_nats)


def _reason(name: str, kl_nats: Mapping[str, float]) -> str:
    """Return what was taken and what the others lose, for a person."""
    if name not in kl_nats:
        return f"{name}, chosen by measured divergence"
    others = ", ".join(f"{other} {kl:.4g}" for other, kl in kl_nats.items() if other != name)
    kept = "kept, since nothing else lost less" if name == UNIFORM else "chosen by measured divergence"
    return f"{name}, {kept} ({kl_nats[name]:.4g} nats; {others})"
