"""``r1mac tune``."""

import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from r1mac import settings as settings_module
from r1mac.cli import options
from r1mac.errors import DoesNotFit
from r1mac.machine import detect
from r1mac.units import GIB, MIB

if TYPE_CHECKING:
    from r1mac.machine.base import HardwareProfile, Machine
    from r1mac.plan.tune import Tuning
    from r1mac.prepare.planning import Judgement
    from r1mac.prepare.tuning import Outcome


def _memory(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """Return a size of memory in bytes; as Apple counts it, ``6gb`` is 6 GiB."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]{1,4}(?:\.[0-9]{1,3})?)\s*(?:(g)|m)(?:i?b)?\s*", text, re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size such as 6gb or 6144mb.")
    size_bytes = round(float(match[1]) * (GIB if match[2] else MIB))
    if size_bytes < 4 * GIB:
        raise click.BadParameter(f"macOS has to keep 4gb or more, and {text} is less.")
    return size_bytes


@click.command(short_help="Show or set how much memory the GPU may use for MODEL.")
@click.argument("model", required=False)
@click.option(
    "--apply", "do_apply", is_flag=True, help="Set the limit until this Mac starts again; sudo asks for a password."
)
@click.option("--persist", is_flag=True, help="Set it at each start too, through a LaunchDaemon.")
@click.option("--undo", "do_undo", is_flag=True, help="Put back what there was before tune changed anything.")
@click.option("--status", is_flag=True, help="Show what is set, and what will be at the next start.")
@click.option(
    "--reserve",
    "reserve_bytes",
    metavar="SIZE",
    callback=_memory,
    help="Memory for macOS and other programs, 4gb or more.  [default: 8gb, or a twentieth and 4gb]",
)
@options.context
@options.bits
@options.kv_bits
@options.parallel
@click.option("--yes", is_flag=True, help="Answer the question that a small reserve raises.")
@options.as_json
def command(
    model: str | None,
    do_apply: bool,
    persist: bool,
    do_undo: bool,
    status: bool,
    reserve_bytes: int | None,
    context_tokens: int | None,
    bits: int | None,
    kv_bits: int | None,
    parallel: int | None,
    yes: bool,
    as_json: bool,
) -> int:
    """Show or set how much memory the GPU may use for MODEL.

    Without --apply nothing is changed. The limit is raised only as far as MODEL needs it, and macOS keeps a
    reserve. What is applied is noted first, so that --undo puts back exactly what there was. Context, KV cache
    and prefill step are kept in config.toml for r1mac run.
    """
    applies = "--persist" if persist else "--apply" if do_apply else None
    if do_undo + status + (applies is not None) > 1:
        raise click.UsageError("--apply (or --persist), --undo and --status exclude each other.")
    wishes = {"--context": context_tokens, "--bits": bits, "--kv-bits": kv_bits, "--parallel": parallel}
    said = [name for name, value in wishes.items() if value is not None]
    _refuse_what_has_no_effect(
        model, said, applies=applies, do_undo=do_undo, status=status, reserves=reserve_bytes is not None, yes=yes
    )
    machine = detect.detect()
    machine.wired_limit()  # refuses a computer that has none
    if do_undo:
        return _undo(machine, as_json=as_json)
    if applies is None:
        machine.hush()  # a dangerous limit is in what is shown, with the way out
    _require_possible(reserve_bytes, machine)
    if model is None:
        return _show_status(machine, reserve_bytes, advise=not status, as_json=as_json)
    chosen = settings_module.load(bits=bits, kv_bits=kv_bits, context_tokens=context_tokens, parallel=parallel)
    judgement, tuning = _propose(model, chosen, machine, reserve_bytes)
    if applies is None:
        return _show(judgement, tuning, reserve_bytes, as_json=as_json)
    _require(judgement, tuning)
    _ask(tuning, judgement.hardware, reserve_bytes, yes=yes, as_json=as_json)
    return _apply(machine, judgement, tuning, persist=persist, as_json=as_json)


def _refuse_what_has_no_effect(
    model: str | None, said: list[str], *, applies: str | None, do_undo: bool, status: bool, reserves: bool, yes: bool
) -> None:
    """Raise click.UsageError where something is said that the command would not heed."""
    if yes and applies is None:
        raise click.UsageError("--yes answers a question of --apply or --persist, and neither is here.")
    if do_undo and (model is not None or said or reserves):
        raise click.UsageError("--undo takes back all that tune did; leave out MODEL and what is said about it.")
    if status and (model is not None or said):
        raise click.UsageError("--status shows this Mac; leave out MODEL and what is said about it.")
    if model is None and applies is not None:
        raise click.UsageError(f"Name a model to tune for: r1mac tune MODEL {applies}.")
    if model is None and said:
        raise click.UsageError(f"{said[0]} is said about a model: name one (r1mac tune MODEL {said[0]} …).")


def _require_possible(reserve_bytes: int | None, machine: "Machine") -> None:
    """Raise click.UsageError if no limit would leave macOS so much."""
    if reserve_bytes is None:
        return
    from r1mac.plan.tune import most_reserve_bytes
    from r1mac.units import format_memory

    most_bytes = most_reserve_bytes(machine.profile())
    if reserve_bytes > most_bytes:
        raise click.UsageError(
            f"macOS's own limit leaves {format_memory(most_bytes)}, and r1mac sets none below it, so it cannot keep a "
            f"reserve of {format_memory(reserve_bytes)}; leave out --reserve."
        )


def _propose(
    model: str, chosen: settings_module.Settings, machine: "Machine", reserve_bytes: int | None
) -> "tuple[Judgement, Tuning]":
    from r1mac.prepare.planning import judge
    from r1mac.prepare.target import resolve
    from r1mac.prepare.tuning import propose

    # What tune kept for a model is its own answer, not a wish.
    chosen = replace(chosen, models={})
    judgement = judge(resolve(model, chosen), chosen, machine.profile())
    return judgement, propose(judgement.wish, judgement.hardware, kv_bits=chosen.kv_bits, reserve_bytes=reserve_bytes)


def _show(judgement: "Judgement", tuning: "Tuning", reserve_bytes: int | None, *, as_json: bool) -> int:
    from r1mac.plan.tune import limits_of
    from r1mac.prepare.target import described
    from r1mac.ui import tables
    from r1mac.ui import tuning as report

    hardware = judgement.hardware
    limits = limits_of(hardware, reserve_bytes=reserve_bytes)
    title = described(judgement.wish.target)
    next_line = _next_line(judgement, tuning, reserve_bytes)
    if as_json:
        data = {"model": title, **report.tuning_data(tuning, judgement.plan, hardware, limits), "command": next_line}
        return _write_json(data, judgement, tuning)
    rows = [("model", title), *report.tuning_rows(tuning, judgement.plan, hardware, limits)]
    if next_line is not None and not tuning.plan.fits:
        rows += [("next", f"{next_line}  (macOS's own limit, at once)")]
    elif next_line is not None and tuning.wired_limit_mib is not None:
        rows += [("next", f"{next_line}  (until this Mac starts again; --persist: at each start)")]
    elif next_line is not None:
        rows += [("next", f"{next_line}  (sets no limit; keeps these values for r1mac run)")]
    tables.show_facts(rows)
    _require(judgement, tuning)
    return 0


def _next_line(judgement: "Judgement", tuning: "Tuning", reserve_bytes: int | None) -> str | None:
    """Return the command that brings what is proposed; None where nothing is."""
    if not tuning.plan.fits:
        from r1mac.machine.darwin import RESET_WIRED_LIMIT

        return RESET_WIRED_LIMIT if tuning.wired_limit_mib == 0 else None
    reserve = ""
    if reserve_bytes is not None:
        whole_gib = reserve_bytes % GIB == 0
        reserve = f" --reserve {reserve_bytes // GIB}gb" if whole_gib else f" --reserve {reserve_bytes // MIB}mb"
    return f"{judgement.wish.command_line('tune')}{reserve} --apply"


def _require(judgement: "Judgement", tuning: "Tuning") -> None:
    """Raise if no limit makes it fit, or the model does not know so long a context.

    Raises:
        DoesNotFit: with the numbers; the hint names what can be run here.
    """
    if not tuning.plan.fits or tuning.context_tokens > judgement.wish.arch.max_context_tokens:
        judgement.require()
        raise DoesNotFit(tuning.reasons[-1], hint="choose fewer --bits or a smaller model")


def _write_json(data: dict[str, Any], judgement: "Judgement", tuning: "Tuning") -> int:
    import json

    exit_code = 0
    try:
        _require(judgement, tuning)
    except DoesNotFit as error:
        data |= {"problem": error.problem, "hint": error.hint}
        exit_code = error.exit_code
    click.echo(json.dumps(data, indent=2))
    return exit_code


def _ask(tuning: "Tuning", hardware: "HardwareProfile", reserve_bytes: int | None, *, yes: bool, as_json: bool) -> None:
    """Ask before a limit that leaves macOS less than r1mac would leave it by itself."""
    from r1mac.plan.tune import default_reserve_bytes
    from r1mac.units import format_memory

    left_bytes = hardware.memory_bytes - (tuning.wired_limit_mib or 0) * MIB
    usual_bytes = default_reserve_bytes(hardware.memory_bytes)
    if yes or reserve_bytes is None or not tuning.wired_limit_mib or left_bytes >= usual_bytes:
        return
    if as_json or not sys.stdin.isatty():
        raise click.UsageError(f"This leaves macOS {format_memory(left_bytes)}; say --yes if you mean it.")
    question = f"This leaves macOS {format_memory(left_bytes)} instead of {format_memory(usual_bytes)}. Set it?"
    click.confirm(question, abort=True, err=True)


def _apply(machine: "Machine", judgement: "Judgement", tuning: "Tuning", *, persist: bool, as_json: bool) -> int:
    from r1mac.prepare.target import settings_names
    from r1mac.prepare.tuning import apply, kept_settings

    settings = kept_settings(judgement.wish, tuning)
    model = settings_names(judgement.wish.target)[0]
    if tuning.wired_limit_mib is not None or persist:
        _say_sudo()
    outcome = apply(machine, tuning, model=model, settings=settings, persist=persist)
    return _show_outcome(machine, outcome, kept=settings, as_json=as_json)


def _undo(machine: "Machine", *, as_json: bool) -> int:
    from r1mac.prepare.tuning import undo

    _say_sudo()
    outcome = undo(machine)
    if outcome is not None:
        return _show_outcome(machine, outcome, kept={}, as_json=as_json)
    wired = machine.wired_limit()
    state = wired.read()
    if as_json:
        import json

        click.echo(json.dumps({"undone": False, "wired_limit_mib": state.limit_mib, "daemon_mib": state.daemon_mib}))
        return 0
    click.echo("There is nothing to undo: no record of a change by tune.")
    if state.limit_mib or state.daemon_mib is not None:
        click.echo(f"macOS's own limit comes back with: {wired.command_line('reset')}")
    if state.daemon_mib is not None:
        click.echo(f"r1mac's daemon goes with: {wired.command_line('uninstall')}")
    return 0


def _say_sudo() -> None:
    from r1mac.machine.admin import has_terminal
    from r1mac.ui import console

    if has_terminal():
        console.note("this needs root; sudo may ask for your password")


def _show_outcome(machine: "Machine", outcome: "Outcome", *, kept: dict[str, int], as_json: bool) -> int:
    from r1mac.machine.occupancy import holders
    from r1mac.plan.tune import limits_of
    from r1mac.ui import console, tables
    from r1mac.ui import tuning as report

    limits = limits_of(machine.profile())
    if as_json:
        import json
        from dataclasses import asdict

        states = {name: asdict(state) for name, state in (("before", outcome.before), ("after", outcome.after))}
        click.echo(json.dumps({**states, "kept": kept, "notes": list(outcome.notes)}, indent=2, default=str))
        return 0
    tables.show_facts(list(report.changed_rows(outcome.before, outcome.after, limits, kept=kept, holders=holders())))
    for note in outcome.notes:
        console.note(note)
    return 0


def _show_status(machine: "Machine", reserve_bytes: int | None, *, advise: bool, as_json: bool) -> int:
    from r1mac import paths
    from r1mac.machine.occupancy import holders
    from r1mac.plan.tune import limits_of
    from r1mac.prepare.journal import UnreadableJournal, load_journal
    from r1mac.prepare.tuning import largest_model
    from r1mac.ui import tables
    from r1mac.ui import tuning as report

    wired, hardware = machine.wired_limit(), machine.profile()
    known = (hardware, limits_of(hardware, reserve_bytes=reserve_bytes), wired.read())
    facts: dict[str, Any] = {"holders": holders(), "uninstall_command": wired.command_line("uninstall")}
    try:
        facts["journal"] = load_journal(paths.tuning_file())
    except UnreadableJournal:
        facts |= {"journal": None, "unreadable": paths.tuning_file()}
    if as_json:
        import json

        click.echo(json.dumps(report.status_data(*known, **facts), indent=2))
        return 0
    rows = list(report.status_rows(*known, **facts))
    if advise and (largest := largest_model(hardware, reserve_bytes=reserve_bytes)) is not None:
        spec, tuning = largest
        needs = "with a higher limit" if tuning.wired_limit_mib else "without a higher limit"
        rows += [("largest model", f"{spec.title} at {spec.default_bits} bits, {needs}")]
        rows += [("next", f"r1mac tune {spec.alias}")]
    tables.show_facts(rows)
    return 0
