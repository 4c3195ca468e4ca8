"""The family's judgements as a table."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from r1mac.plan.report import PROMPT_TOKENS, answer_seconds
from r1mac.prepare.planning import Judgement
from r1mac.units import format_about, format_memory, format_rate

HEADER = (
    "model",
    "bits",
    "weights",
    "longest context",
    "decode/s",
    "prefill/s",
    "typical answer",
    "memory",
)


def as_rows(judgements: Iterable[Judgement], *, answer_tokens: int | None) -> Iterator[tuple[str, ...]]:
    """Yield a row for each width that fits, and one for each model of which none does: its narrowest, and the lack."""
    for _, group in groupby(judgements, key=lambda judgement: judgement.wish.name):
        widths = list(group)
        for judgement in [width for width in widths if width.plan.fits] or widths[-1:]:
            yield _row(judgement, answer_tokens or judgement.wish.typical_answer_tokens)


def _row(judgement: Judgement, answer_tokens: int) -> tuple[str, ...]:
    plan, speed = judgement.plan, judgement.speed
    start = (judgement.wish.name, str(judgement.wish.target.bits), format_memory(plan.weight_bytes))
    if not plan.fits:
        short = format_memory(plan.total_bytes - plan.budget_bytes)
        tuned = ", fits after `r1mac tune`" if judgement.fits_when_tuned else ""
        return (*start, "-", "-", "-", "-", f"does not fit, {short} short{tuned}")
    used = f"{format_memory(plan.total_bytes)} with {plan.context_tokens} tokens"
    if speed is None:
        return (*start, str(plan.max_context_tokens), "-", "-", "-", used)
    seconds = answer_seconds(speed, plan, answer_tokens)
    return (
        *start,
        str(plan.max_context_tokens),
        format_rate(speed.decode_tokens_per_s(plan.context_tokens // 2)),
        format_rate(speed.prefill_tokens_per_s(PROMPT_TOKENS)),
        "-" if seconds is None else format_about(seconds),
        used,
    )
