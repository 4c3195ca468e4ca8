"""From what a name means to an engine that is loaded: what commands and the server do alike."""

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from r1mac.machine.base import Machine
from r1mac.machine.occupancy import Holder
from r1mac.prepare.drafting import Draft, draft_for, with_draft
from r1mac.prepare.files import PrepareEvent, ensure_files
from r1mac.prepare.loading import HeldMemory, load, memory_held, refitted
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


class Opened(NamedTuple):
    """A loaded model, and what is held of the computer's memory for it."""

    engine: "Engine"
    memory: HeldMemory


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
) -> Generator[PrepareEvent, None, Opened]:
    """Hold the memory that was planned, until *held* is closed, and load the model.

    Raises:
        DoesNotFit: other r1mac processes hold too much; *force* goes on knowingly, and *on_others* is told.
        BadCheckpoint: the files are not a whole model.
    """
    memory = memory_held(prepared.judgement, machine, force=force, on_others=on_others)
    memory_of_it = held.enter_context(memory)
    engine = yield from load(prepared.judgement, machine, prepared.folder, prepared.settings, prepared.draft)
    memory_of_it.enter("run")
    return Opened(engine, memory_of_it)


def replanned(prepared: Prepared, judgement: Judgement) -> Prepared:
    """Return the same model under another plan, with memory for conversations that are not at work.

    Raises:
        R1MacError: there is no room beside it for the model that was asked to draft.
    """
    draft = draft_for(judgement, prepared.folder, prepared.settings)
    return with_kept_prompts(replace(prepared, judgement=with_draft(judgement, draft), draft=draft))


def reopened(
    opened: Opened, former: Prepared, prepared: Prepared, machine: Machine, *, force: bool = False
) -> Opened | None:
    """Return what is loaded as *former* says under the plan of *prepared*, between two replies.

    None where the weights would have to be loaded anew: they are computed with in another type, or another model
    drafts.

    Raises:
        DoesNotFit: other r1mac processes hold too much; everything is as it was.
    """
    plan, former_plan = prepared.judgement.plan, former.judgement.plan
    drafting = [None if one.draft is None else (one.draft.folder, one.draft.plan.compute) for one in (former, prepared)]
    if (plan.compute, plan.kv_bits, plan.parallel) != (former_plan.compute, former_plan.kv_bits, former_plan.parallel):
        return None
    if drafting[0] != drafting[1]:
        return None
    opened.memory.follow(prepared.judgement, force=force)
    engine = refitted(opened.engine, prepared.judgement, machine, prepared.folder, prepared.settings, prepared.draft)
    return Opened(engine, opened.memory)
