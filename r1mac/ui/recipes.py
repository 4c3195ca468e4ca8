"""Recipes as a table."""

from r1mac.plan.memory import FLOAT_WIDTHS
from r1mac.prepare.recipes import JudgedRecipe
from r1mac.units import format_memory, format_rate

HEADER = ("model", "--recipe", "--bits", "weights", "bits/weight", "decode/s", "fits", "what it does")


def as_row(judged: JudgedRecipe) -> tuple[str, ...]:
    """Return a recipe as a row; what is typed for it stands in the column of its option."""
    recipe, spec, judgement = judged
    stored_bytes, speed = judgement.wish.weights.stored_bytes, judgement.speed
    named = bool(recipe.models)
    width = recipe.default.mode if recipe.default.mode in FLOAT_WIDTHS else str(recipe.default.bits)
    bits = str(recipe.nominal_bits) if recipe.automatic else "-"
    rate = None if speed is None else speed.decode_tokens_per_s(judgement.plan.context_tokens // 2)
    return (
        spec.alias,
        recipe.name if named else "plain",
        bits if named else width,
        format_memory(stored_bytes),
        f"{8 * stored_bytes / spec.arch.parameter_count:.2f}",
        "-" if rate is None or not judgement.plan.context_tokens else format_rate(rate),
        "yes" if judgement.can_run else "after `r1mac tune`" if judgement.fits_when_tuned else "no",
        recipe.summary or f"every matrix {_width_name(width)}",
    )


def _width_name(width: str) -> str:
    return f"at {width} bits" if width.isdigit() else f"in {width}"
