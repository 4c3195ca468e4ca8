"""``quality.json``: what was measured of a model, beside it.

Each part says by itself when, with what and on which text it was measured, since one may be newer than another.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from r1mac.durable import read_object, write_whole

QUALITY_NAME = "quality.json"
_FORMAT = 1
_DIGITS = 5

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """How likely a model finds a text.

    Attributes:
        perplexity: of the text.
        text: its name.
        text_sha256: digest of it.
        tokens: how many of it were read.
        made_with: versions of programs.
        measured: ISO date and time in UTC; None where that is when the model was made.
    """

    perplexity: float
    text: str
    text_sha256: str
    tokens: int
    made_with: Mapping[str, str]
    measured: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """How far a model's distributions of the next token are from another's, the reference's, on the same text.

    Attributes:
        reference: its name.
        revision: commit of its repository, where it has one.
        reference_perplexity: of the text.
        kl_nats: mean Kullback-Leibler divergence of the model's distribution from the reference's.
        kl_p99_nats: what 99 of 100 tokens' divergences do not exceed.
        same_top: share of tokens after which both think the same token likeliest.
        text, text_sha256, tokens, made_with, measured: as in Perplexity.
    """

    reference: str
    revision: str | None
    reference_perplexity: float
    kl_nats: float
    kl_p99_nats: float
    same_top: float
    text: str
    text_sha256: str
    tokens: int
    made_with: Mapping[str, str]
    measured: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thoughts:
    """What became of problems whose answers can be checked.

    Attributes:
        replies: how many were written, one for each problem and seed.
        right: those whose answer is right.
        thoughts: those with a thought; none for a model that writes no thoughts.
        closed: those whose thought the model ended by itself.
        looped: those whose thought or answer went in circles.
        written_tokens: of all replies.
        most_tokens: that a reply could have.
        seeds: how many replies each problem got; their seeds count from 1.
        problems_sha256: digest of the problems.
        made_with, measured: as in Perplexity.
    """

    replies: int
    right: int
    thoughts: int
    closed: int
    looped: int
    written_tokens: int
    most_tokens: int
    seeds: int
    problems_sha256: str
    made_with: Mapping[str, str]
    measured: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What is known of a model's quality; None is what was not measured.

    Attributes:
        unmeasured: why a conversion did not measure its result, if it did not.
    """

    perplexity: Perplexity | None = None
    divergence: Divergence | None = None
    thoughts: Thoughts | None = None
    unmeasured: str | None = None

    def merged(self, newer: "Quality") -> "Quality":
        """Return this with the parts that *newer* has in place of its own."""
        return Quality(
            perplexity=newer.perplexity or self.perplexity,
            divergence=newer.divergence or self.divergence,
            thoughts=newer.thoughts or self.thoughts,
            unmeasured=newer.unmeasured,
        )


def load_quality(folder: Path) -> Quality | None:
    """Return what *folder*'s quality.json says; None where there is none, or none that can be read."""
    data = read_object(folder / QUALITY_NAME)
    found = from_data(data) if data.get("format") == _FORMAT else Quality()
    return found if found != Quality() else None


def from_data(data: Mapping[str, Any]) -> Quality:
    """Return what :func:`as_data` was given; a part that is not as it was written is left out."""
    reason = data.get("unmeasured")
    return Quality(
        perplexity=_part(Perplexity, data.get("perplexity")),
        divergence=_part(Divergence, data.get("divergence")),
        thoughts=_part(Thoughts, data.get("thoughts")),
        unmeasured=reason if isinstance(reason, str) else None,
    )


def save_quality(folder: Path, quality: Quality) -> None:
    """Write quality.json into *folder*: whole and on the disk, or not at all.

    Raises:
        OSError: that is not possible; what was there stays.
    """
    write_whole(folder / QUALITY_NAME, json.dumps(as_data(quality), indent=1, ensure_ascii=False) + "\n")


def as_data(quality: Quality) -> dict[str, Any]:
    """Return *quality* as JSON has it; figures have five digits, which is more than a text of any length tells."""
    data: dict[str, Any] = {"format": _FORMAT}
    for name, part in asdict(quality).items():
        if isinstance(part, dict):
            data[name] = {key: _rounded(value) for key, value in part.items()}
        elif part is not None:
            data[name] = part
    return data


def as_rows(quality: Quality) -> list[tuple[str, str]]:
    """Return *quality* as names and sentences for a person."""
    rows = []
    if (far := quality.divergence) is not None:
        text = f"{far.kl_nats:.4g} nats from {far.reference} (99 of 100 tokens: below {far.kl_p99_nats:.3g})"
        rows.append(("divergence", f"{text}; the likeliest token is the same for {far.same_top:.1%}"))
    if (read := quality.perplexity) is not None:
        beside = ""
        if far is not None and (far.text_sha256, far.tokens) == (read.text_sha256, read.tokens):
            beside = f", {far.reference_perplexity:.4g} of {far.reference}"
        rows.append(("perplexity", f"{read.perplexity:.4g}{beside}, on {read.tokens:,} tokens of {read.text}"))
    if (thoughts := quality.thoughts) is not None:
        rows.append(("thoughts", _thoughts_sentence(thoughts)))
    if quality.unmeasured is not None:
        rows.append(("quality", f"not measured: {quality.unmeasured}"))
    return rows


def summary(quality: Quality) -> str:
    """Return what matters most of *quality* in one line."""
    parts = []
    if (far := quality.divergence) is not None:
        parts.append(f"{far.kl_nats:.4g} nats from {far.reference}, the same likeliest token for {far.same_top:.1%}")
    elif (read := quality.perplexity) is not None:
        parts.append(f"perplexity {read.perplexity:.4g}")
    if (thoughts := quality.thoughts) is not None:
        parts.append(_thoughts_sentence(thoughts))
    return "; ".join(parts) or f"not measured: {quality.unmeasured}"


def _thoughts_sentence(thoughts: Thoughts) -> str:
    closed = f"{thoughts.closed} of {thoughts.thoughts} thoughts ended by themselves"
    looped = f"{thoughts.looped or 'none'} of the replies went in circles"
    return (
        f"{thoughts.right} of {thoughts.replies} answers are right, "
        f"{closed if thoughts.thoughts else 'it writes no thoughts'}, {looped}"
    )


def _rounded(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _part(kind: type[_Part], data: Any) -> _Part | None:
    """Return a part as it was written; None where a field is absent, too many, or of another type."""
    if not isinstance(data, dict):
        return None
    try:
        part = kind(**data)
    except TypeError:
        return None
    return part if all(_is_sound(field.type, getattr(part, field.name)) for field in fields(kind)) else None  # type: ignore[arg-type]


def _is_sound(kind: Any, value: Any) -> bool:
    if value is None:
        return "None" in str(kind)
    if kind is float:
        return type(value) in {int, float}
    if kind in {int, str}:
        return type(value) is kind
    return isinstance(value, (str, int, dict, list))
