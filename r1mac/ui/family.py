"""The family's judgements as a table."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from r1mac.plan.fit import TYPICAL_PROMPT_TOKENS
from r1mac.plan.report import UNKNOWN_CHIP, answer_seconds
from r1mac.prepare.planning import Judgement
from r1mac.units import format_about, format_memory, format_rate

HEADER = ("model", "bits", "weights", "longest context", "decode/s", "prefill/s", "typical answer", "memory")


def as_rows(judgements: Sequence[Judgement], *, answer_tokens: int | None) -> Iterator[tuple[str, ...]]:
    """Yield a row for each width that fits, also if with a higher limit only; else a model's narrowest."""
    for _, group in groupby(judgements, key=lambda judgement: judgement.wish.name):
        widths = list(group)
        for judgement in [width for width in widths if width.can_run or width.fits_when_tuned] or widths[-1:]:
            yield _row(judgement, answer_tokens or judgement.wish.typical_answer_tokens)


def legend(judgements: Sequence[Judgement], *, answer_tokens: int | None) -> Iterator[str]:
    """Yield what the columns mean, and why some are empty."""
    if all(judgement.speed is None for judgement in judgements):
        hardware = judgements[0].hardware
        real_mac = hardware.system == "macos" and not hardware.virtual
        yield f"no forecast of speed: {UNKNOWN_CHIP if real_mac else 'only real Macs are forecast'}"
        return
    lengths = {judgement.wish.name: answer_tokens or judgement.wish.typical_answer_tokens for judgement in judgements}
    usual = max(set(lengths.values()), key=list(lengths.values()).count)
    others = {
        length: [name for name, own in lengths.items() if own == length] for length in {*lengths.values()} - {usual}
    }
    exceptions = "".join(f", {length} for {', '.join(names)}" for length, names in others.items())
    yield f"decode/s: tokens a second with an empty context; prefill/s: of a prompt of {TYPICAL_PROMPT_TOKENS} tokens"
    yield f"typical answer: {usual} tokens of thought and answer{exceptions}; «-»: the context has no room for it"


def _row(judgement: Judgement, answer_tokens: int) -> tuple[str, ...]:
    plan, speed = judgement.plan, judgement.speed
    start = (judgement.wish.name, str(judgement.wish.target.bits), format_memory(plan.weight_bytes))
    longest = str(plan.max_context_tokens) if plan.max_context_tokens else "-"
    if not judgement.can_run:
        short = format_memory(plan.total_bytes - plan.budget_bytes)
        tuned = ", fits after `r1mac tune`" if judgement.fits_when_tuned else ""
        return (*start, longest, "-", "-", "-", f"{short} short with {plan.context_tokens} tokens{tuned}")
    used = f"{format_memory(plan.total_bytes)} with {plan.context_tokens} tokens"
    if speed is None:
        return (*start, longest, "-", "-", "-", used)
    seconds = answer_seconds(speed, plan, answer_tokens)
    return (
        *start,
        longest,
        format_rate(speed.decode_tokens_per_s(0)),
        format_rate(speed.prefill_tokens_per_s(TYPICAL_PROMPT_TOKENS)),
        "-" if seconds is None else format_about(seconds),
        used,
    )
