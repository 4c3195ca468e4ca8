"""``r1mac convert --dry-run``: what a conversion would make and take, from shapes alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from r1mac.prepare.conversion_memory import peak_bytes
from r1mac.units import format_about, format_memory, format_size

if TYPE_CHECKING:
    from r1mac.catalog.models import ModelSpec
    from r1mac.convert.layout import ModelLayout
    from r1mac.plan.recipe import Recipe

# A slow disk for reading and writing: the internal SSD of every Mac that can run these models is faster.
DISK_BYTES_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One model that would be made.

    Attributes:
        recipe: its name.
        bits: the width that it counts as; None for a mix that has none.
        output_bytes: of all its tensors.
        prediction_bytes: of a layer that predicts further tokens, in a file of its own beside it.
    """

    recipe: str
    bits: int | None
    output_bytes: int
    prediction_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a conversion would make and take.

    Attributes:
        source: what would be converted.
        source_bytes: that is read, or fetched.
        parameter_count: values before quantisation.
        results: the models.
        peak_bytes: of memory.
        disk_bytes: for the results, and one percent more.
        disk_s: to read and write all that at DISK_BYTES_PER_S.
        compute_s: to quantise all at the rate that this computer had just now.
    """

    source: str
    source_bytes: int
    parameter_count: int
    results: tuple[Result, ...]
    peak_bytes: int
    disk_bytes: int
    disk_s: float
    compute_s: float


def forecast_model(
    spec: "ModelSpec", recipes: "Sequence[Recipe]", *, prediction: bool = True, memory_bytes: int | None
) -> Forecast:
    """Return the forecast for a model of the catalog; none of its files is needed.

    Without *prediction* its layers behind the last one (MTP) are left out.

    Raises:
        BadRecipe: a recipe cannot be applied to it.
    """
    from r1mac.convert.layout import layout_on_paper

    arch = spec.arch if prediction else replace(spec.arch, prediction_layer_count=0)
    layouts = [layout_on_paper(arch, recipe) for recipe in recipes]
    return _forecast(spec.source_repo or spec.title, spec.source_bytes, recipes, layouts, memory_bytes)


def forecast_local(
    path: Path,
    recipes: "Sequence[Recipe]",
    *,
    adapters: Sequence[Path] = (),
    prediction: bool = True,
    memory_bytes: int | None,
) -> Forecast:
    """Return the forecast for the weights at *path*, of which only headers are read.

    Without *prediction* layers behind the last one (MTP) are left out.

    Raises:
        BadCheckpoint, BadRecipe: as a conversion would.
    """
    from r1mac import paths
    from r1mac.convert.layout import plan_layout
    from r1mac.convert.sources import open_source

    source = open_source(paths.expanded(path), adapters, prediction=prediction)
    layouts = [plan_layout(source, recipe) for recipe in recipes]
    names = {name for tensor in layouts[0].tensors for name in tensor.sourcing.names}
    source_bytes = sum(map(source.size_bytes, names))
    return _forecast(source.description, source_bytes, recipes, layouts, memory_bytes)


def rows_of(forecast: Forecast) -> list[tuple[str, str]]:
    """Return *forecast* as names and values for a person."""
    rows = [("source", f"{forecast.source}, {format_size(forecast.source_bytes)}")]
    for result in forecast.results:
        width = f"{result.bits} bits" if result.bits else "mixed"
        text = f"{result.output_bytes:,} bytes ({width}, recipe {result.recipe})"
        if result.prediction_bytes:
            text += f", and {format_size(result.prediction_bytes)} of a layer beside it (MTP)"
        rows.append(("result", text))
    time = (
        f"about {format_about(max(forecast.compute_s, forecast.disk_s))}: {format_about(forecast.compute_s)} of "
        f"computing at this computer's rate, {format_about(forecast.disk_s)} of reading and writing at "
        f"{format_size(DISK_BYTES_PER_S)}/s"
    )
    return [
        *rows,
        ("memory", f"{format_memory(forecast.peak_bytes)} at most"),
        ("disk", f"{format_size(forecast.disk_bytes)} for the result"),
        ("time", time),
    ]


def _forecast(
    source: str,
    source_bytes: int,
    recipes: "Sequence[Recipe]",
    layouts: "Sequence[ModelLayout]",
    memory_bytes: int | None,
) -> Forecast:
    from r1mac.convert.rate import values_per_s

    output_bytes = sum(layout.output_bytes for layout in layouts)
    parameter_count = layouts[0].parameter_count
    rates = [values_per_s(recipe.widths) for recipe in recipes]
    return Forecast(
        source=source,
        source_bytes=source_bytes,
        parameter_count=parameter_count,
        results=tuple(
            Result(
                recipe=recipe.name,
                bits=recipe.nominal_bits,
                output_bytes=layout.output_bytes - layout.prediction_bytes,
                prediction_bytes=layout.prediction_bytes,
            )
            for recipe, layout in zip(recipes, layouts, strict=True)
        ),
        peak_bytes=peak_bytes(memory_bytes, recipes),
        disk_bytes=output_bytes + output_bytes // 100,
        disk_s=(source_bytes + output_bytes) / DISK_BYTES_PER_S,
        compute_s=sum(parameter_count / rate for rate in rates),
    )
