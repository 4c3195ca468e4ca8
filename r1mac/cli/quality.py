"""The options of ``r1mac convert`` that trade time for quality, and what they mean."""

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r1mac.cli.size import Size
from r1mac.machine import detect

if TYPE_CHECKING:
    from r1mac.prepare.calibrating import Quality
    from r1mac.prepare.conversion import Output
    from r1mac.prepare.weights import Weights

_quality = click.option(
    "--quality",
    is_flag=True,
    help="Choose scales and codes by what the weights are multiplied with, which is measured first: slower, and "
    "much nearer to the original. The bytes of 2, 3 or 4 bits go where they save most, to widths that differ; "
    "--recipe plain keeps one.",
)
_statistics = click.option(
    "--statistics",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="What `r1mac calibrate` measured, for --quality.  [default: measured now]",
)
_calibration = click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A text of your own to measure with, for --quality.  [default: r1mac's]",
)
_bits_per_weight = click.option(
    "--bits-per-weight",
    type=click.FloatRange(min=1, max=16),
    metavar="X",
    help="A width of its own for each kind of matrix, so that the mean over the matrices' weights is X, scales "
    "included (4 bits in groups of 64 are 4.5), and least is lost; goes with --quality.",
)
_fit = click.option(
    "--fit", "fit_bytes", type=Size(), help="As --bits-per-weight, for weights of this size, such as 48gb."
)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the options, in the order in which its help shows them."""
    return reduce(
        lambda made, option: option(made), (_fit, _bits_per_weight, _calibration, _statistics, _quality), command
    )


def asked_quality(*, asked: bool, statistics: Path | None, calibration: Path | None, mixes: bool) -> "Quality | None":
    """Return what the options say; None is plain rounding."""
    from r1mac import paths
    from r1mac.prepare.calibrating import Quality

    if not asked and (statistics or calibration):
        raise click.UsageError("--statistics and --calibration are for --quality: add it, or leave them out")
    if statistics and calibration:
        raise click.UsageError("--statistics were measured with a text already: leave out --calibration")
    if not asked:
        return None
    return Quality(
        statistics=None if statistics is None else paths.expanded(statistics),
        text_file=None if calibration is None else paths.expanded(calibration),
        mixes=mixes,
    )


def within_budget(
    weights: "Weights",
    output: Path | None,
    bits_per_weight: float | None,
    fit_bytes: int | None,
    dtype: str | None,
    quality: "Quality | None",
    adapters: tuple[Path, ...],
    *,
    as_json: bool,
    quiet: bool,
) -> "tuple[list[Output], Quality]":
    """Measure, choose widths, write them beside the output as a recipe, and say what they are."""
    from r1mac.errors import BadRecipe
    from r1mac.prepare.budget import Budget, choose_recipe_within
    from r1mac.prepare.calibrating import Quality
    from r1mac.prepare.conversion import Output, outputs_of
    from r1mac.ui import console
    from r1mac.ui.progress import ProgressDisplay
    from r1mac.units import format_size

    if quality is None:
        raise click.UsageError("--bits-per-weight and --fit go with --quality: add it")
    if weights.path is None or output is None:
        raise BadRecipe(
            f"what the matrices of {weights.title} cost is measured on its weights, which are not on this disk",
            hint=f"fetch them with `hf download {weights.repo} --local-dir FOLDER`, and convert that folder",
        )
    (folder,) = outputs_of(output, ["mixed"])
    budget = Budget(bits_per_weight=bits_per_weight, size_bytes=fit_bytes, dtype=dtype)
    with ProgressDisplay(quiet=quiet, as_json=as_json) as display:
        chosen, statistics, file = display.run(
            choose_recipe_within(weights.path, folder, budget, quality, detect.detect(), adapters=adapters)
        )
    if not quiet and not as_json:
        console.note(
            f"{format_size(chosen.size_bytes)}: {chosen.recipe.summary}; `{file}` has the widths, {statistics} what "
            "was measured"
        )
    return [Output(chosen.recipe, folder)], Quality(statistics=statistics)
