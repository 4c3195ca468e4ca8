"""``r1mac convert --bits-per-weight`` and ``--fit``: bytes become a recipe, by what each kind of matrix costs."""

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from r1mac.durable import write_whole
from r1mac.errors import BadRecipe, writing_to
from r1mac.machine.base import Machine
from r1mac.plan.memory import Quantization, tensor_bytes
from r1mac.prepare.calibrating import Quality, calibrate_source, is_whole, sequences_of
from r1mac.prepare.files import PrepareEvent, Progress
from r1mac.units import format_size

if TYPE_CHECKING:
    from r1mac.convert.layout import ModelLayout
    from r1mac.convert.sensitivity import Sensitivity
    from r1mac.convert.sources import Source
    from r1mac.plan.recipe import Recipe

# What a matrix may become. Small groups pay at 2 to 4 bits; wide codes have little use for them.
_CHOICES = tuple(
    Quantization(bits=bits, group_size=group_size) for bits in (2, 3, 4) for group_size in (128, 64, 32)
) + tuple(Quantization(bits=bits, group_size=64) for bits in (5, 6, 8))
# An embedding that is no head has no input that could be measured.
_UNMEASURED = Quantization(bits=4, group_size=64)
# Some of the calibration text is enough to tell kinds of matrices from each other.
_SEQUENCES, _TOKENS = 3, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a model's weights may take: one of the first two.

    Attributes:
        bits_per_weight: mean over all its values.
        size_bytes: of all weight files.
        dtype: type of scales and of what is not quantised; None keeps the source's.
    """

    bits_per_weight: float | None = None
    size_bytes: int | None = None
    dtype: str | None = None

    def bytes_for(self, parameter_count: int) -> int:
        """Return it in bytes, for a model of so many values."""
        if self.size_bytes is not None:
            return self.size_bytes
        assert self.bits_per_weight is not None
        return int(self.bits_per_weight * parameter_count / 8)


class Chosen(NamedTuple):
    """A recipe within a budget.

    Attributes:
        recipe: what was chosen.
        expected_kl_nats: what the matrices' measured divergences add up to.
        size_bytes: of the weights that it makes.
    """

    recipe: "Recipe"
    expected_kl_nats: float
    size_bytes: int


def choose_within(
    source: "Source", budget: Budget, statistics: Path, machine: Machine, *, title: str, text_file: Path | None = None
) -> Generator[PrepareEvent, None, Chosen]:
    """Return the widths that lose least within *budget*; what is measured for it is kept in *statistics*.

    Args:
        source: the model.
        budget: what its weights may take.
        statistics: folder that ``r1mac calibrate`` made, or makes here.
        machine: this computer.
        title: the model's name for a person.
        text_file: what to measure with; None for the text that r1mac has.

    Raises:
        BadRecipe: no widths are small enough.
        R1MacError: as :func:`calibrate_source` does.
    """
    from r1mac.convert.layout import plan_layout
    from r1mac.convert.recipe import plain

    if not is_whole(statistics):
        yield from calibrate_source(source, statistics, machine, title=title, text_file=text_file)
    layout = plan_layout(source, plain(bits=16, dtype=budget.dtype))
    budget_bytes = budget.bytes_for(layout.parameter_count)
    width = _measured_width(8 * budget_bytes / layout.parameter_count)
    known = yield from _sensitivity(source, statistics, width, title=title, text_file=text_file)
    return _choose(layout, known, budget_bytes, title=title, dtype=budget.dtype)


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


def _sensitivity(
    source: "Source", statistics: Path, width: Quantization, *, title: str, text_file: Path | None
) -> "Generator[PrepareEvent, None, Sensitivity]":
    from r1mac.convert.input_statistics import RECORD_NAME
    from r1mac.convert.sensitivity import as_data, from_data, measure_sensitivity

    path = statistics / f"sensitivity-{width.bits}bit.json"
    record = json.loads((statistics / RECORD_NAME).read_text(encoding="utf-8"))
    if path.exists() and (found := json.loads(path.read_text(encoding="utf-8"))).get("statistics") == record:
        return from_data(found["sensitivity"])
    sequences = sequences_of(source, text_file)
    sequences = [ids[:_TOKENS] for ids in sequences[:: max(len(sequences) // _SEQUENCES, 1)][:_SEQUENCES]]
    for done, total, known in measure_sensitivity(source, statistics, sequences, width=width, others=_CHOICES):
        yield Progress(task="weigh", title=title, done=done, total=total)
        measured = known
    write_whole(path, json.dumps({"statistics": record, "sensitivity": as_data(measured)}, indent=1))
    return measured


def _choose(layout: "ModelLayout", known: "Sensitivity", budget_bytes: int, *, title: str, dtype: str | None) -> Chosen:
    from r1mac.convert.allocation import allocate, as_recipe, choices_of
    from r1mac.convert.sensitivity import total_cost

    tensors = {tensor.name.removesuffix(".weight"): tensor for tensor in layout.tensors if not tensor.is_prediction}
    fixed_bytes, options, unmeasured = 0, {}, {}
    for path, tensor in tensors.items():
        if path in known.groups:
            costs = {width: known.cost(path, width) for width in known.loss[path]}
            options[path] = choices_of(tensor.shape, costs, value_bytes=tensor.dtype.size)
        elif path in layout.widths and tensor.shape[-1] % _UNMEASURED.group_size == 0:
            unmeasured[path] = _UNMEASURED
            fixed_bytes += tensor_bytes(tensor.shape, _UNMEASURED, value_bytes=tensor.dtype.size)
        else:
            fixed_bytes += sum(stored.size_bytes for stored in tensor.stored())
    widths = allocate(options, budget_bytes - fixed_bytes)
    if widths is None:
        least_bytes = fixed_bytes + sum(choices[0].size_bytes for choices in options.values())
        raise BadRecipe(
            f"the weights of {title} take at least {format_size(least_bytes)}, and the budget is "
            f"{format_size(budget_bytes)}",
            hint=f"allow {8 * least_bytes / layout.parameter_count + 0.005:.2f} bits per weight or more, "
            "or choose a smaller model",
        )
    cost = total_cost(known, widths)
    size_bytes = fixed_bytes + sum(
        tensor_bytes(tensors[path].shape, width, value_bytes=tensors[path].dtype.size) for path, width in widths.items()
    )
    bits_per_weight = 8 * size_bytes / layout.parameter_count
    summary = f"{bits_per_weight:.3f} bits a weight, chosen by measured divergence ({cost:.3g} nats expected)"
    recipe = as_recipe({**widths, **unmeasured}, name=f"{bits_per_weight:.2f}bpw", summary=summary, dtype=dtype)
    return Chosen(recipe, cost, size_bytes)
