"""How every command that loads a model begins: find, plan, fetch and load it, and tell the person what goes on."""

import contextlib
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from r1mac.machine import detect
from r1mac.machine.occupancy import Holder, held_by
from r1mac.prepare.drafting import A_SIBLING
from r1mac.prepare.opening import Prepared, open_engine, prepare
from r1mac.prepare.planning import Judgement, judge
from r1mac.prepare.target import described, resolve, settings_names
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
    machine = detect.detect()
    prepared = find_and_fetch(model, chosen, machine, force=force, as_json=as_json, quiet=quiet)
    with ProgressDisplay(quiet=quiet, as_json=as_json) as display:
        opened = display.run(open_engine(prepared, machine, held, force=force, on_others=tell_of_others))
    return prepared.judgement, opened.engine


def find_and_fetch(
    model: str, chosen: Settings, machine: "Machine", *, force: bool, as_json: bool = False, quiet: bool
) -> Prepared:
    """Return what MODEL means, found to fit and on this disk.

    Raises:
        R1MacError: it is unknown, does not fit or cannot be had.
    """
    talkative = not quiet and not as_json
    target = resolve(model, chosen)
    if talkative and target.spec is not None:
        console.note(f"{described(target)} ({target.spec.licence})")
    if talkative:
        _tell_of_unfinished_runs(machine)
    judgement = judge(target, chosen, machine.profile())
    if talkative and not force and judgement.fits_when_tuned and sys.stdin.isatty() and sys.stderr.isatty():
        judgement = _offer_to_tune(judgement, chosen, machine)
    _require(judgement, force=force)
    with ProgressDisplay(quiet=quiet, as_json=as_json) as display:
        prepared = display.run(prepare(judgement, machine, chosen, on_wait=display.wait))
        if talkative and chosen.draft == A_SIBLING and prepared.draft is None:
            console.note("no smaller model of this family is here to draft; the text itself does (`r1mac list`)")
    return prepared


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


def _offer_to_tune(judgement: Judgement, chosen: Settings, machine: "Machine") -> Judgement:
    """Ask whether to raise the limit that alone is in the way, and return the judgement under what is set then.

    Raises:
        NeedsAdmin, UnsupportedMachine: the limit was not set; nothing is changed.
    """
    from r1mac.prepare.tuning import apply, kept_settings, propose

    wish, plan = judgement.wish, judgement.plan
    tuning = propose(wish, judgement.hardware, kv_bits=chosen.kv_bits)
    if not tuning.plan.fits or not tuning.wired_limit_mib:
        return judgement
    console.note(
        f"{described(wish.target)} needs {format_memory(plan.total_bytes)}, and macOS lets the GPU use "
        f"{format_memory(plan.budget_bytes)} of {format_memory(judgement.hardware.memory_bytes)}"
    )
    question = (
        f"Raise that limit to {tuning.wired_limit_mib} MiB until this Mac starts again? sudo asks for a password."
    )
    if not click.confirm(question, err=True):
        return judgement
    name, settings = settings_names(wish.target)[0], kept_settings(wish, tuning)
    outcome = apply(machine, tuning, model=name, settings=settings, persist=False)
    console.note(f"the limit is {outcome.after.limit_mib} MiB now; `r1mac tune --undo` puts back what it was")
    for note in outcome.notes:
        console.note(note)
    # What tune keeps for this model counts now, as it will the next time.
    return judge(wish.target, replace(chosen, models={**chosen.models, name: settings}), machine.profile())


def tell_of_others(others: tuple[Holder, ...]) -> None:
    """Say which processes --force goes past."""
    console.note(f"r1mac already holds {held_by(others)}; going on, as --force says")


def _tell_of_unfinished_runs(machine: "Machine") -> None:
    """Say what became of runs that did not end in order, and what would be safer, once."""
    runs = unfinished(machine)
    for run in runs:
        console.note(f"{run.describe()}\n  {run.advice()}")
    mark_told(runs)
