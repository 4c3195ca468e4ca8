"""A tuning and the state of the wired limit, as rows for a person and as data for a program."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from r1mac.machine.base import HardwareProfile
from r1mac.machine.darwin import RESET_WIRED_LIMIT
from r1mac.machine.wired_limit import WiredState
from r1mac.plan.fit import MemoryPlan
from r1mac.plan.report import machine_row
from r1mac.plan.tune import Limits, Tuning
from r1mac.units import MIB, format_memory

if TYPE_CHECKING:
    from pathlib import Path

    from r1mac.machine.occupancy import Holder
    from r1mac.prepare.journal import Journal

Row = tuple[str, str]


def tuning_rows(tuning: Tuning, plan_now: MemoryPlan, hardware: HardwareProfile, limits: Limits) -> Iterator[Row]:
    """Yield what is now and what is proposed, then why."""
    plan = tuning.plan
    yield machine_row(hardware)
    mib = limits.set_mib if tuning.wired_limit_mib is None else tuning.wired_limit_mib
    now, then = limit_text(limits.set_mib, limits), limit_text(mib, limits)
    yield "wired limit", f"{now}, stays" if tuning.wired_limit_mib is None else f"{now} -> {then}"
    if plan.fits:
        memory_bytes = hardware.memory_bytes
        left = (format_memory(max(0, memory_bytes - limit)) for limit in (hardware.wired_limit_bytes, plan.limit_bytes))
        yield "left to macOS", _change(*left)
        if not plan_now.fits:
            yield "fits now", "no"
            plan_now = plan
        yield "context", _change(str(plan_now.context_tokens), str(plan.context_tokens), " tokens")
        yield "KV cache", _change(str(plan_now.kv_bits), str(plan.kv_bits), " bits")
        yield "prefill step", _change(str(plan_now.prefill_step_tokens), str(plan.prefill_step_tokens), " tokens")
    yield from _named_once("why", tuning.reasons)


def tuning_data(tuning: Tuning, plan_now: MemoryPlan, hardware: HardwareProfile, limits: Limits) -> dict[str, Any]:
    """Return the same as JSON types; every name carries its unit."""
    mib = limits.set_mib if tuning.wired_limit_mib is None else tuning.wired_limit_mib
    return {
        "machine": asdict(hardware),
        "now": _plan_data(plan_now, limits.set_mib),
        "proposed": _plan_data(tuning.plan, mib),
        "wired_limit_mib_to_set": tuning.wired_limit_mib,
        "reasons": list(tuning.reasons),
    }


def status_rows(
    hardware: HardwareProfile,
    limits: Limits,
    state: WiredState,
    *,
    holders: Sequence["Holder"],
    journal: "Journal | None",
    unreadable: "Path | None" = None,
    uninstall_command: str,
) -> Iterator[Row]:
    """Yield what is set, what will be at the next start, and who still has an older limit.

    Args:
        hardware: this Mac.
        limits: its limits.
        state: what is set.
        holders: who runs.
        journal: what there was before tune's first change, if it changed anything.
        unreadable: that record, where it is there and cannot be read.
        uninstall_command: what removes r1mac's daemon.
    """
    yield machine_row(hardware)
    yield "wired limit", limit_text(state.limit_mib, limits)
    if state.limit_mib:
        estimated = ", estimated" if limits.default_is_estimated else ""
        yield "macOS's own", f"{format_memory(limits.default_bytes)}{estimated}"
    left = format_memory(hardware.memory_bytes - (limits.highest_mib * MIB or limits.default_bytes))
    most = f"up to {limit_text(limits.highest_mib, limits)}" if limits.highest_mib else "nothing above macOS's own"
    yield "r1mac sets", f"{most}, which leaves macOS {left}"
    yield from _dangers(limits, state, uninstall_command)
    yield from _named_once("each start", list(_at_each_start(state)))
    if state.daemon_mib not in {None, state.limit_mib}:
        now = f"{state.limit_mib} MiB" if state.limit_mib else "macOS's own"
        yield "drift", f"r1mac's daemon sets {state.daemon_mib} MiB at each start, and now it is {now}"
    yield from _named_once("running", [_holder_text(holder, hardware) for holder in holders])
    if journal is not None:
        before = f"{journal.limit_mib} MiB" if journal.limit_mib else "macOS's own limit"
        daemon = f"a daemon that sets {journal.daemon_mib} MiB" if journal.daemon_mib else "no daemon"
        yield "before tune", f"{before}, {daemon}; `r1mac tune --undo` puts it back"
    if unreadable is not None:
        from r1mac.prepare.journal import set_aside

        yield "record", f"unreadable: {unreadable}"
        yield "", f"{set_aside(unreadable)}  (tune begins anew; what was set before its first change is forgotten)"


def _dangers(limits: Limits, state: WiredState, uninstall_command: str) -> Iterator[Row]:
    """Yield what is or will be set above what this Mac can bear, each with the command that puts it right."""
    if limits.too_high:
        yield "danger", f"macOS has less than 4 GiB left; {limits.bearable_mib} MiB is the most that this Mac can bear"
        yield "", f"{RESET_WIRED_LIMIT}  (macOS's own limit, at once)"
    for path, mib, remove in _startup(state, uninstall_command):
        if limits.is_too_high(mib):
            yield "danger", f"{path} sets {mib} MiB at each start, which leaves macOS less than 4 GiB"
            yield "", f"{remove}  (and then it no longer does)"


def _startup(state: WiredState, uninstall_command: str) -> Iterator[tuple[str, int, str]]:
    if state.daemon_mib is not None:
        yield "r1mac's daemon", state.daemon_mib, uninstall_command
    for other in state.others:
        yield str(other.path), other.value, f"sudo rm {shlex.quote(str(other.path))}"


def status_data(
    hardware: HardwareProfile,
    limits: Limits,
    state: WiredState,
    *,
    holders: Sequence["Holder"],
    journal: "Journal | None",
    unreadable: "Path | None" = None,
    uninstall_command: str,
) -> dict[str, Any]:
    """Return the same as JSON types."""
    return {
        "machine": asdict(hardware),
        "wired_limit_mib": state.limit_mib,
        "default_bytes": limits.default_bytes,
        "default_is_estimated": limits.default_is_estimated,
        "highest_mib": limits.highest_mib,
        "bearable_mib": limits.bearable_mib,
        "too_high": limits.too_high,
        "daemon_mib": state.daemon_mib,
        "other_daemons": [{"path": str(other.path), "mib": other.value} for other in state.others],
        "drift": state.daemon_mib not in {None, state.limit_mib},
        "running": [{**asdict(holder), "old_limit": _has_old_limit(holder, hardware)} for holder in holders],
        "dangers": [text for _, text in _dangers(limits, state, uninstall_command)],
        "before": None if journal is None else {"limit_mib": journal.limit_mib, "daemon_mib": journal.daemon_mib},
        "unreadable_record": None if unreadable is None else str(unreadable),
    }


def changed_rows(
    before: WiredState, after: WiredState, limits: Limits, *, kept: dict[str, int], holders: Sequence["Holder"]
) -> Iterator[Row]:
    """Yield what is different after a tuning or its end, as it was read back."""
    yield "wired limit", _change(limit_text(before.limit_mib, limits), limit_text(after.limit_mib, limits))
    yield "each start", _change(*("; ".join(_at_each_start(state)) for state in (before, after)))
    if kept:
        yield "config.toml", ", ".join(f"{name} {value}" for name, value in kept.items())
    if before.limit_mib != after.limit_mib:
        yield "programs", "restart programs that are running: they keep the old limit"
        yield from _named_once("", [f"{holder.title} (process {holder.pid})" for holder in holders])


def limit_text(mib: int, limits: Limits) -> str:
    """Return a wired limit with where it comes from; 0 is macOS's own."""
    if mib:
        return f"{format_memory(mib * MIB)} ({mib} MiB)"
    return f"{format_memory(limits.default_bytes)} (macOS's own{', estimated' if limits.default_is_estimated else ''})"


def _at_each_start(state: WiredState) -> Iterator[str]:
    if state.daemon_mib is not None:
        yield f"r1mac's daemon sets {state.daemon_mib} MiB"
    for other in state.others:
        yield f"{other.path} sets {other.value} MiB"
    if state.daemon_mib is None and not state.others:
        yield "macOS's own limit"


def _holder_text(holder: "Holder", hardware: HardwareProfile) -> str:
    text = f"{holder.title} (process {holder.pid}) with {format_memory(holder.planned_bytes)}"
    if not _has_old_limit(holder, hardware):
        return text
    return f"{text}; it keeps the limit of {format_memory(holder.wired_limit_bytes)} that it began with: restart it"


def _has_old_limit(holder: "Holder", hardware: HardwareProfile) -> bool:
    return holder.wired_limit_bytes != hardware.wired_limit_bytes


def _plan_data(plan: MemoryPlan, limit_mib: int) -> dict[str, Any]:
    return {
        "wired_limit_mib": limit_mib,
        "wired_limit_bytes": plan.limit_bytes,
        "context_tokens": plan.context_tokens,
        "kv_bits": plan.kv_bits,
        "prefill_step_tokens": plan.prefill_step_tokens,
        "total_bytes": plan.total_bytes,
        "budget_bytes": plan.budget_bytes,
        "fits": plan.fits,
    }


def _change(now: str, then: str, unit: str = "") -> str:
    return f"{now}{unit}" if now == then else f"{now} -> {then}{unit}"


def _named_once(name: str, texts: Sequence[str]) -> Iterator[Row]:
    for number, text in enumerate(texts):
        yield name if number == 0 else "", text
