"""What a conversion lost, measured on a short text when it is done: its source and all its results side by side."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1mac.errors import R1MacError
from r1mac.formats.quality import Divergence, Perplexity, Quality
from r1mac.prepare.conversion_memory import MeasuringRoom
from r1mac.prepare.files import Progress
from r1mac.prepare.tokens import encode_texts

if TYPE_CHECKING:
    from r1mac.catalog.arch import ArchSpec
    from r1mac.convert.comparison import Reading
    from r1mac.convert.evaluation import EvaluationText
    from r1mac.convert.sources import Source

# A few hundred tokens tell widths apart; `r1mac eval` reads more.
_MOST_TOKENS = 512
# On a CPU so many that multiplying takes no longer than reading; where a token meets few of the weights, more.
_DENSE_TOKENS_ON_CPU, _EXPERT_TOKENS_ON_CPU = 64, 128
# Of each part of the text one.
_SEQUENCES = 4
# Fewer tell nothing.
_LEAST_TOKENS = 16


def measure_results(
    source: "Source | None",
    folders: Sequence[Path],
    *,
    title: str,
    reference: str,
    revision: str | None,
    room: MeasuringRoom,
) -> Generator[Progress, None, list[Quality]]:
    """Return what is measured of each of the models in *folders*; nothing in it differs between runs.

    A model that cannot be measured is no error: its Quality says why.

    Args:
        source: what they were made from; None where its weights are not here any more.
        folders: the models.
        title: their source's name for a person.
        reference: what to call *source* in the results.
        revision: its commit.
        room: what it may take.
    """
    try:
        return (
            yield from _measured(
                source,
                folders,
                title=title,
                reference=reference,
                revision=revision,
                room=room,
            )
        )
    except R1MacError as error:
        return [Quality(unmeasured=error.problem) for _ in folders]


def _measured(
    source: "Source | None",
    folders: Sequence[Path],
    *,
    title: str,
    reference: str,
    revision: str | None,
    room: MeasuringRoom,
) -> Generator[Progress, None, list[Quality]]:
    from r1mac.convert.comparison import compare_passages
    from r1mac.convert.evaluation import EvaluationText
    from r1mac.convert.passage import Passage
    from r1mac.convert.safetensors_source import SafetensorsSource

    text = EvaluationText.shipped()
    results = [SafetensorsSource(folder, prediction=False) for folder in folders]
    opened: list[Source] = [*([] if source is None else [source]), *results]
    passages = [Passage(one, block_bytes=room.block_bytes) for one in opened]
    sequences = _sequences(results[0], text, passages[0].arch, len(passages), room.states_bytes)
    if not sequences:
        return [Quality(unmeasured="--memory leaves no room for it") for _ in folders]
    readings: Sequence[Reading] = ()
    for event in compare_passages(passages, sequences, with_reference=source is not None, room_bytes=room.states_bytes):
        yield Progress(task="measure", title=title, done=event.done, total=event.total)
        readings = event.readings
    wanted = readings[0] if source is not None else None
    mine = readings[1:] if source is not None else readings
    return [quality_of(reading, text, wanted=wanted, reference=reference, revision=revision) for reading in mine]


def _sequences(
    source: "Source", text: "EvaluationText", arch: "ArchSpec", model_count: int, room_bytes: int
) -> list[list[int]]:
    """Return what to read: as much as there is room for, and none where that is too little."""
    from r1mac.convert.device import on_cpu
    from r1mac.convert.evaluation import cut_sequences
    from r1mac.convert.passage import bytes_per_token

    on_a_cpu = _DENSE_TOKENS_ON_CPU if arch.experts is None else _EXPERT_TOKENS_ON_CPU
    most = on_a_cpu if on_cpu() else _MOST_TOKENS
    tokens = min(most, room_bytes // bytes_per_token(arch, model_count))
    if tokens < _LEAST_TOKENS:
        return []
    encoded = encode_texts(source, text.parts)
    return cut_sequences(encoded.texts, tokens=tokens, length=most // _SEQUENCES, first_id=encoded.first_id)


def quality_of(
    reading: "Reading",
    text: "EvaluationText",
    *,
    wanted: "Reading | None",
    reference: str,
    revision: str | None,
    measured: str | None = None,
) -> Quality:
    """Return a *reading* as quality.json has it.

    Args:
        reading: of the model.
        text: what was read.
        wanted: the reference's reading, where there is a reference.
        reference: its name.
        revision: its commit.
        measured: when; None with a conversion.
    """
    from r1mac.convert.journal import made_with

    occasion: dict[str, Any] = {
        "text": text.name,
        "text_sha256": text.sha256,
        "tokens": reading.tokens,
        "made_with": made_with(),
        "measured": measured,
    }
    perplexity = Perplexity(perplexity=reading.perplexity, **occasion)
    if wanted is None:
        return Quality(perplexity=perplexity)
    assert reading.kl_nats is not None
    assert reading.kl_p99_nats is not None
    assert reading.same_top is not None
    divergence = Divergence(
        reference=reference,
        revision=revision,
        reference_perplexity=wanted.perplexity,
        kl_nats=reading.kl_nats,
        kl_p99_nats=reading.kl_p99_nats,
        same_top=reading.same_top,
        **occasion,
    )
    return Quality(perplexity=perplexity, divergence=divergence)
