"""Which model drafts for another one on this computer, and whether there is room for both."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from r1mac.errors import DoesNotFit, UnknownModel
from r1mac.formats.folder import read_config, weight_files
from r1mac.plan.fit import MemoryPlan, fit
from r1mac.prepare.planning import Judgement, arch_of
from r1mac.prepare.target import find_stored, resolve, store_of
from r1mac.settings import Settings
from r1mac.units import format_memory

# What the setting may be beside a model's name.
NOBODY, THE_TEXT, A_SIBLING = "off", "lookup", "auto"


class Draft(NamedTuple):
    """A smaller model that drafts.

    Attributes:
        title: what a person calls it.
        plan: its memory, beside that of the larger one.
    """

    title: str
    folder: Path
    plan: MemoryPlan


def draft_for(judgement: Judgement, folder: Path, settings: Settings) -> Draft | None:
    """Return the model that is to draft for the one in *folder*, or None where none is wanted, or found by itself.

    Raises:
        UnknownModel: the model that was asked for is not here, or its tokens are not the same texts.
        DoesNotFit: there is no room for both.
    """
    wanted = settings.draft or THE_TEXT
    if wanted in {NOBODY, THE_TEXT}:
        return None
    if wanted == A_SIBLING:
        return _sibling(judgement, folder, settings)
    target = resolve(wanted, settings)
    stored = find_stored(target, settings)
    place = stored.path if stored else target.folder
    if place is None:
        raise UnknownModel(f"{wanted} is not here to draft", hint=f"fetch it first: r1mac pull {wanted}")
    draft = _planned(target.title, place, judgement)
    _require(draft, folder, judgement)
    return draft


def with_draft(judgement: Judgement, draft: Draft | None) -> Judgement:
    """Return *judgement* with the memory that *draft* takes."""
    if draft is None:
        return judgement
    return judgement._replace(plan=replace(judgement.plan, draft_bytes=draft.plan.total_bytes))


def _sibling(judgement: Judgement, folder: Path, settings: Settings) -> Draft | None:
    """Return the lightest model in the store that can draft and for which there is room."""
    from r1mac.engine.drafts.pairs import DraftCandidate, choose_draft

    stored = {model.name: model for model in store_of(settings).list() if model.path != folder}
    candidates = [
        DraftCandidate(name=name, arch=arch_of(read_config(model.path), name), size_bytes=model.size_bytes)
        for name, model in stored.items()
        if not model.missing_files()
    ]
    chosen = choose_draft(judgement.wish.arch, candidates)
    if chosen is None:
        return None
    draft = _planned(chosen.name, stored[chosen.name].path, judgement)
    try:
        _require(draft, folder, judgement)
    except (UnknownModel, DoesNotFit):
        return None
    return draft


def _planned(title: str, folder: Path, judgement: Judgement) -> Draft:
    arch = arch_of(read_config(folder), str(folder))
    plan = fit(
        arch,
        judgement.hardware,
        stored_bytes=sum(path.stat().st_size for path in weight_files(folder)),
        context_tokens=min(judgement.plan.context_tokens, arch.max_context_tokens),
        most_step_tokens=judgement.plan.prefill_step_tokens,
    )
    return Draft(title, folder, plan)


def _require(draft: Draft, folder: Path, judgement: Judgement) -> None:
    from r1mac.engine.drafts.pairs import require_same_vocabulary

    require_same_vocabulary(draft.folder, folder)
    both = with_draft(judgement, draft).plan
    if not both.fits:
        raise DoesNotFit(
            f"{draft.title} needs {format_memory(both.draft_bytes)} to draft, and {format_memory(both.budget_bytes)} "
            f"are enough for the larger model alone",
            hint="leave out --draft, or shorten the --context",
        )
