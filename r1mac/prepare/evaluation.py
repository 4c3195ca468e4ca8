"""``r1mac eval``: how good a model is, on a text and beside its original, and whether its thoughts still end."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from r1mac import paths
from r1mac.errors import BadCheckpoint, DoesNotFit, R1MacError, UnknownModel, writing_to
from r1mac.formats.quality import Quality, Thoughts, load_quality, save_quality
from r1mac.machine.base import Machine
from r1mac.prepare.files import Note, PrepareEvent, Progress
from r1mac.prepare.measuring import quality_of
from r1mac.prepare.target import Target, described, find_stored, resolve
from r1mac.prepare.tokens import encode_texts, read_text
from r1mac.settings import Settings
from r1mac.units import MIB, format_memory

if TYPE_CHECKING:
    from r1mac.convert.comparison import Reading
    from r1mac.convert.evaluation import EvaluationText
    from r1mac.convert.passage import Passage
    from r1mac.convert.sources import Source
    from r1mac.prepare.problems import Problem, Reply

_SEQUENCE_TOKENS = 256
_LEAST_TOKENS = 16
# Python, MLX, the tokenizer.
_FIXED_BYTES = 300 * MIB
# Beside a reply: the prompt of a problem.
_PROMPT_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """A model on this disk that is evaluated, or that others are compared with.

    Attributes:
        title: for a person.
        path: its folder, or file.
        revision: commit of the Hub repository that it came from, where that is known.
        target: what it is run as; None for a file, or a folder of weights that are no MLX model.
    """

    title: str
    path: Path
    revision: str | None = None
    target: Target | None = None


def find_weighed(name: str, settings: Settings) -> Weighed:
    """Return the model that *name* means: a folder, a file of weights, or a model of the store.

    Raises:
        UnknownModel: there is none, or it is not on this disk.
    """
    from r1mac.hub.manifest import load_manifest

    path = paths.expanded(Path(name))
    if path.is_file():
        return Weighed(title=path.name, path=path)
    target = resolve(name, settings)
    stored = find_stored(target, settings)
    folder = stored.path if stored else target.folder
    if folder is None:
        raise UnknownModel(f"{described(target)} is not on this disk", hint=f"`r1mac pull {name}` fetches it")
    manifest = load_manifest(folder)
    return Weighed(
        title=described(target), path=folder, revision=manifest.revision if manifest else None, target=target
    )


def evaluate_text(
    model: Weighed, reference: Weighed | None, machine: Machine, *, text_file: Path | None, tokens: int
) -> Generator[PrepareEvent, None, Quality]:
    """Return how likely *model* finds a text and, with a *reference*, how far its distributions are from that one's.

    Both stream through: of each some rows of one matrix are in memory at a time.

    Raises:
        BadCheckpoint: one cannot be computed with, the two cannot be compared, or the text is too short or no text.
        DoesNotFit: the hidden states of so many tokens are too much.
    """
    from r1mac.convert.comparison import compare_passages
    from r1mac.convert.evaluation import EvaluationText
    from r1mac.convert.passage import Passage
    from r1mac.convert.sources import open_source

    text = EvaluationText.shipped()
    if text_file is not None:
        text = EvaluationText(name=text_file.name, parts=(read_text(text_file, "the text"),))
    named = [model] if reference is None else [reference, model]
    sources = [open_source(one.path, prediction=False) for one in named]
    passages = [Passage(source) for source in sources]
    sequences = _sequences(sources, text, tokens)
    room_bytes = _room_for_states(passages, sum(map(len, sequences)), machine)
    readings: Sequence[Reading] = ()
    for event in compare_passages(passages, sequences, with_reference=reference is not None, room_bytes=room_bytes):
        yield Progress(task="evaluate", title=model.title, done=event.done, total=event.total)
        readings = event.readings
    return quality_of(
        readings[-1],
        text,
        wanted=readings[0] if reference is not None else None,
        reference=reference.title if reference is not None else "",
        revision=reference.revision if reference is not None else None,
        measured=_now(),
    )


def evaluate_thoughts(
    model: Weighed,
    machine: Machine,
    settings: Settings,
    problems: "Sequence[Problem]",
    *,
    seeds: int,
    most_tokens: int,
) -> Generator[PrepareEvent, None, Quality]:
    """Return what becomes of *problems*; of nothing, and a note why, where the memory does not hold the model.

    Raises:
        BadCheckpoint: it cannot be loaded.
    """
    from r1mac.prepare.loading import load, memory_held
    from r1mac.prepare.planning import judge
    from r1mac.prepare.problems import put_problems

    if model.target is None:
        yield Note(f"problems were not put to {model.title}: a file of weights is not run")
        return Quality()
    settings = replace(settings, context_tokens=most_tokens + _PROMPT_TOKENS, draft="off", parallel=None)
    try:
        judgement = judge(model.target, settings, machine.profile())
        judgement.require()
        with memory_held(judgement, machine):
            engine = yield from load(judgement, machine, model.path, settings)
            replies: list[Reply] = []
            total = len(problems) * seeds
            yield Progress(task="solve", title=model.title, done=0, total=total)
            for reply in put_problems(problems, engine.session, seeds=seeds, most_tokens=most_tokens):
                replies.append(reply)
                yield Progress(task="solve", title=model.title, done=len(replies), total=total)
    except DoesNotFit as error:
        yield Note(f"problems were not put to {model.title}: {error.problem}")
        return Quality()
    return Quality(thoughts=_thoughts(problems, replies, seeds=seeds, most_tokens=most_tokens))


def keep(model: Weighed, quality: Quality) -> Generator[PrepareEvent, None, Quality]:
    """Put *quality* into quality.json beside *model*, and return all that is known of it now."""
    if not model.path.is_dir():
        yield Note(f"this is kept nowhere: {model.title} is a file")
        return quality
    whole = (load_quality(model.path) or Quality()).merged(quality)
    try:
        with writing_to(model.path):
            save_quality(model.path, whole)
    except R1MacError as error:
        yield Note(f"this is not kept beside the model: {error.problem}")
    return whole


def _sequences(sources: "Sequence[Source]", text: "EvaluationText", tokens: int) -> list[list[int]]:
    """Return what is read of *text*, by the tokenizer that all *sources* share.

    Raises:
        BadCheckpoint: they do not share one, or the text is too short.
    """
    from r1mac.convert.evaluation import cut_sequences

    encoded = [encode_texts(source, text.parts) for source in sources]
    if any(other.texts != encoded[0].texts for other in encoded[1:]):
        raise BadCheckpoint(
            f"{sources[-1].description} and {sources[0].description} cut the text into other tokens: their "
            "distributions cannot be compared",
            hint="compare a model with what it was made from",
        )
    # The model's own habit is what it is run with.
    parts, first_id = encoded[-1]
    if max(map(len, parts)) < _LEAST_TOKENS:
        raise BadCheckpoint(
            f"{text.name} has {max(map(len, parts))} tokens, and at least {_LEAST_TOKENS} are needed",
            hint="use a longer --text",
        )
    return cut_sequences(parts, tokens=tokens, length=_SEQUENCE_TOKENS, first_id=first_id)


def _room_for_states(passages: "Sequence[Passage]", token_count: int, machine: Machine) -> int:
    """Return the bytes that there are for what the tokens take.

    Raises:
        DoesNotFit: they are too few.
    """
    from r1mac.convert.passage import bytes_per_token, needed_bytes

    arch = max((passage.arch for passage in passages), key=lambda each: bytes_per_token(each, len(passages)))
    free_bytes = machine.available_memory_bytes() - _FIXED_BYTES
    wanted_bytes = needed_bytes(arch, token_count, len(passages))
    spare_bytes = free_bytes - needed_bytes(arch, 0, len(passages))
    if wanted_bytes <= free_bytes:
        return spare_bytes
    fitting = spare_bytes // bytes_per_token(arch, len(passages))
    raise DoesNotFit(
        f"the hidden states of {token_count} tokens take {format_memory(wanted_bytes)}, and "
        f"{format_memory(max(free_bytes, 0))} are free",
        hint=f"read fewer: --tokens {fitting}" if fitting >= _LEAST_TOKENS else "close other programs",
    )


def _thoughts(problems: "Sequence[Problem]", replies: "Sequence[Reply]", *, seeds: int, most_tokens: int) -> Thoughts:
    from r1mac.convert.journal import made_with
    from r1mac.prepare.problems import digest_of

    return Thoughts(
        replies=len(replies),
        right=sum(reply.right for reply in replies),
        thoughts=sum(reply.has_thought for reply in replies),
        closed=sum(reply.closed for reply in replies),
        looped=sum(reply.looped for reply in replies),
        written_tokens=sum(reply.written_tokens for reply in replies),
        most_tokens=most_tokens,
        seeds=seeds,
        problems_sha256=digest_of(problems),
        made_with=made_with(),
        measured=_now(),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
