"""How every command that loads a model begins: find, plan, fetch and load it, and tell the person what goes on."""

import contextlib
from typing import TYPE_CHECKING

from r1mac.machine import detect
from r1mac.prepare.files import ensure_files
from r1mac.prepare.loading import load, memory_held
from r1mac.prepare.planning import Judgement, judge
from r1mac.prepare.target import described, resolve
from r1mac.prepare.unfinished import mark_told, unfinished
from r1mac.settings import Settings
from r1mac.ui import console
from r1mac.ui.progress import ProgressDisplay
from r1mac.units import format_memory

if TYPE_CHECKING:
    from r1mac.engine.load import Engine
    from r1mac.machine.base import Machine


def start(
    model: str, chosen: Settings, held: contextlib.ExitStack, *, force: bool, as_json: bool, quiet: bool
) -> "tuple[Judgement, Engine]":
    """Return MODEL's plan and its engine; what *held* holds ends with the run.

    Raises:
        R1MacError: it is unknown, does not fit, cannot be had or cannot be loaded.
    """
    talkative = not quiet and not as_json
    machine = detect.detect()
    target = resolve(model, chosen)
    if talkative and target.spec is not None:
        console.note(f"{described(target)} ({target.spec.licence})")
    if talkative:
        _tell_of_unfinished_runs(machine)
    judgement = judge(target, chosen, machine.profile())
    _require(judgement, force=force)
    with ProgressDisplay(quiet=quiet, as_json=as_json) as display:
        folder = display.run(ensure_files(target, chosen, machine, on_wait=display.wait))
        recording = held.enter_context(memory_held(judgement, machine, force=force))
        engine = display.run(load(target, judgement.plan, folder))
    recording.enter("run")
    return judgement, engine


def _require(judgement: Judgement, *, force: bool) -> None:
    """Refuse a plan that does not fit, unless the person goes on knowingly.

    Raises:
        DoesNotFit: it cannot be run here.
    """
    plan = judgement.plan
    if not force or plan.context_tokens > judgement.wish.arch.max_context_tokens:
        judgement.require()
    if not plan.fits:
        short = format_memory(plan.total_bytes - plan.budget_bytes)
        console.note(f"this needs {short} more than this machine should give; going on, as --force says")


def _tell_of_unfinished_runs(machine: "Machine") -> None:
    """Say what became of runs that did not end in order, and what would be safer, once."""
    runs = unfinished(machine)
    for run in runs:
        console.note(f"{run.describe()}\n  {run.advice()}")
    mark_told(runs)
