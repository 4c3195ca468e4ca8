"""From what a name means to an engine that is loaded: what commands and the server do alike."""

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from r1mac.machine.base import Machine
from r1mac.machine.occupancy import Holder
from r1mac.prepare.drafting import Draft, draft_for, with_draft
from r1mac.prepare.files import PrepareEvent, ensure_files
from r1mac.prepare.loading import load, memory_held
from r1mac.prepare.planning import Judgement
from r1mac.settings import Settings

if TYPE_CHECKING:
    from r1mac.engine.load import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model whose files are on this disk and that was found to fit.

    Attributes:
        judgement: with the memory of whoever drafts.
        draft: the smaller model that drafts, if one does.
        settings: that it was asked for with.
    """

    judgement: Judgement
    folder: Path
    draft: Draft | None
    settings: Settings


def prepare(
    judgement: Judgement, machine: Machine, settings: Settings, *, on_wait: Callable[[str], None] | None = None
) -> Generator[PrepareEvent, None, Prepared]:
    """Make sure that the files of what was judged are here, and find who drafts for it.

    Raises:
        R1MacError: they cannot be had, or who was asked to draft cannot.
    """
    folder = yield from ensure_files(judgement.wish.target, settings, machine, on_wait=on_wait)
    draft = draft_for(judgement, folder, settings)
    return Prepared(judgement=with_draft(judgement, draft), folder=folder, draft=draft, settings=settings)


def with_kept_prompts(prepared: Prepared) -> Prepared:
    """Return *prepared* with memory for conversations that are not at work: half of what the plan leaves over.

    It is at most what the contexts at work may take, so that each may alternate with one other.
    """
    plan = prepared.judgement.plan
    contexts_bytes = plan.parallel * plan.kv_bytes_per_token * plan.context_tokens
    spare_bytes = max(plan.budget_bytes - plan.total_bytes, 0)
    plan = replace(plan, kept_prompts_bytes=min(contexts_bytes, spare_bytes // 2))
    return replace(prepared, judgement=prepared.judgement._replace(plan=plan))


def open_engine(
    prepared: Prepared,
    machine: Machine,
    held: contextlib.ExitStack,
    *,
    force: bool = False,
    on_others: Callable[[tuple[Holder, ...]], None] | None = None,
) -> Generator[PrepareEvent, None, "Engine"]:
    """Hold the memory that was planned, until *held* is closed, and load the model.

    Raises:
        DoesNotFit: other r1mac processes hold too much; *force* goes on knowingly, and *on_others* is told.
        BadCheckpoint: the files are not a whole model.
    """
    memory = memory_held(prepared.judgement, machine, force=force, on_others=on_others)
    recording = held.enter_context(memory)
    engine = yield from load(prepared.judgement, machine, prepared.folder, prepared.settings, prepared.draft)
    recording.enter("run")
    return engine
