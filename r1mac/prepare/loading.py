"""The last step: files and a plan become an engine, and the computer's memory is held for it."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from r1mac.machine.base import Machine
from r1mac.machine.occupancy import Holder, occupy
from r1mac.plan.fit import MemoryPlan
from r1mac.prepare.drafting import Draft
from r1mac.prepare.files import PrepareEvent, Progress
from r1mac.prepare.planning import Judgement
from r1mac.prepare.target import described
from r1mac.settings import Settings

if TYPE_CHECKING:
    from r1mac.engine.load import Engine
    from r1mac.engine.memory.limits import Limiting
    from r1mac.machine.occupancy import Occupied
    from r1mac.prepare.black_box import Phase, Recording


class HeldMemory:
    """What is held of the computer's memory for a model, with its record on the disk."""

    def __init__(self, recording: "Recording", occupied: "Occupied", limiting: "Limiting") -> None:
        self._recording, self._occupied, self._limiting = recording, occupied, limiting

    def enter(self, phase: "Phase") -> None:
        """Put down in the record how far the run is."""
        self._recording.enter(phase)

    def follow(self, judgement: Judgement, *, force: bool = False) -> None:
        """Hold what another plan of the same model needs, between two replies.

        Raises:
            DoesNotFit: another r1mac process holds too much for that; everything is as it was. *force* goes on.
        """
        plan = judgement.plan
        self._occupied.hold(
            planned_bytes=plan.total_bytes,
            budget_bytes=plan.budget_bytes,
            wired_limit_bytes=judgement.hardware.wired_limit_bytes,
            force=force,
        )
        self._limiting.follow(plan)
        self._recording.replan(plan)


@contextlib.contextmanager
def memory_held(
    judgement: Judgement,
    machine: Machine,
    *,
    force: bool = False,
    on_others: Callable[[tuple[Holder, ...]], None] | None = None,
) -> Iterator[HeldMemory]:
    """Hold what the plan needs while the block loads and runs the model.

    Other r1mac processes are told, MLX gets its limits, once for this process, and a record is kept for the case
    that this computer goes down with it. *on_others* is told of the processes that *force* goes past.

    Raises:
        DoesNotFit: another r1mac process holds too much for both; *force* goes on knowingly.
    """
    from r1mac.engine.memory.limits import limited
    from r1mac.prepare.black_box import recorded

    plan, title = judgement.plan, described(judgement.wish.target)
    held = occupy(
        title,
        planned_bytes=plan.total_bytes,
        budget_bytes=plan.budget_bytes,
        wired_limit_bytes=judgement.hardware.wired_limit_bytes,
        force=force,
        on_others=on_others,
    )
    record = recorded(plan, machine, model=judgement.wish.name, bits=judgement.wish.target.bits, title=title)
    with record as recording, held as occupied, limited(plan) as limiting:
        yield HeldMemory(recording, occupied, limiting)


def load(
    judgement: Judgement, machine: Machine, folder: Path, settings: Settings, draft: Draft | None = None
) -> Generator[PrepareEvent, None, "Engine"]:
    """Load the model in *folder* as *judgement* says, and *draft* beside it; return its engine."""
    from r1mac.prepare.aids import aids_maker

    engine = yield from _load(judgement.wish.target.title, folder, judgement.plan)
    drafting = None if draft is None else (yield from _load(draft.title, draft.folder, draft.plan))
    make_aids = aids_maker(judgement, machine, folder, settings, draft=draft, drafting=drafting)
    return replace(engine, make_aids=make_aids, drafting=drafting)


def refitted(
    engine: "Engine", judgement: Judgement, machine: Machine, folder: Path, settings: Settings, draft: Draft | None
) -> "Engine":
    """Return the engine of the same loaded weights under another plan, between two replies.

    What its sessions and batches read before is kept as far as the plan has memory for it (``Engine.refit``).
    """
    from r1mac.prepare.aids import aids_maker

    plan, drafting = judgement.plan, engine.drafting
    if draft is not None and drafting is not None:
        drafting = replace(
            drafting, context_tokens=draft.plan.context_tokens, prefill_step_tokens=draft.plan.prefill_step_tokens
        )
    former = engine.make_aids().prompt_cache
    make_aids = aids_maker(judgement, machine, folder, settings, draft=draft, drafting=drafting, former=former)
    return replace(
        engine,
        context_tokens=plan.context_tokens,
        prefill_step_tokens=plan.prefill_step_tokens,
        make_aids=make_aids,
        drafting=drafting,
    )


def _load(title: str, folder: Path, plan: MemoryPlan) -> Generator[PrepareEvent, None, "Engine"]:
    from r1mac.engine.load import load_engine

    steps = load_engine(
        folder,
        compute=plan.compute,
        context_tokens=plan.context_tokens,
        prefill_step_tokens=plan.prefill_step_tokens,
        kv_bits=plan.kv_bits,
    )
    while True:
        try:
            done, total = next(steps)
        except StopIteration as stop:
            engine: Engine = stop.value
            return engine
        yield Progress(task="load", title=title, done=done, total=total)
