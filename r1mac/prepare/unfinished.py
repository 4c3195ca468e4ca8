"""Runs that did not end in order: what became of them, and a plan that asks for less."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from r1mac import paths
from r1mac.machine.base import Machine
from r1mac.machine.process_records import SUFFIX
from r1mac.machine.readings import Boot, Panic
from r1mac.plan.fit import MIN_CONTEXT_TOKENS
from r1mac.prepare.black_box import TOLD_SUFFIX, RunRecord, read_left
from r1mac.units import format_memory

# A lower plan takes at least a tenth less: the share of its limit that macOS needs to stay out of trouble.
_LOWER_SHARE = 0.9
# Nobody runs out of memory with so small a share of it.
_LITTLE_SHARE = 0.25
# Codes of 8 bits with a scale and a bias for 64 or, at worst, 32 of them, in place of 16 bits.
_KV8_SHARE = 9 / 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A run that did not end in order.

    Attributes:
        path: its record.
        ending: the process is gone («killed»), the computer has started again since («restart»), or it left the
            report of a crash («panic»).
        panic: the crash's report, where there is one.
    """

    path: Path
    record: RunRecord
    ending: Literal["killed", "restart", "panic"]
    panic: Panic | None = None

    def describe(self) -> str:
        """Return one sentence for a person, without a full stop."""
        record = self.record
        when = time.strftime("%d %b %H:%M", time.localtime(record.started_at_s))
        doing = "was loading" if record.phase == "load" else "ran"
        plan = f"{format_memory(record.total_bytes)} planned of {format_memory(record.limit_bytes)}"
        happened = {
            "panic": "the computer crashed while r1mac",
            "restart": "the computer started again before the end of an r1mac that",
            "killed": "r1mac was killed or crashed while it",
        }[self.ending]
        reason = f" ({self.panic.reason})" if self.panic else ""
        return f"{happened} {doing} {record.title}{reason}; started {when}, with {plan}"

    @property
    def needed_little(self) -> bool:
        """Whether it had planned for so little of this computer's memory that memory was hardly the reason."""
        return self.record.total_bytes < _LITTLE_SHARE * self.record.limit_bytes

    def advice(self) -> str:
        """Return what would make the next run safer."""
        if self.needed_little:
            return "that was little of this computer's memory, so memory was hardly the reason"
        lower = lower_plan(self.record)
        if lower is None:
            return "its weights are most of that: take fewer --bits or a smaller model (`r1mac plan` lists what fits)"
        bits = "" if self.record.bits is None else f" --bits {self.record.bits}"
        kv_bits = f" --kv-bits {lower.kv_bits}" if lower.kv_bits != 16 else ""  # noqa: PLR2004
        command = f"r1mac run {self.record.model}{bits} --context {lower.context_tokens}{kv_bits}"
        return f"`{command}` needs about {format_memory(lower.total_bytes)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerPlan:
    """A plan for the same weights that needs at least a tenth less."""

    context_tokens: int
    kv_bits: int
    total_bytes: int


def lower_plan(record: RunRecord) -> LowerPlan | None:
    """Return the nearest plan that needs at least a tenth less than the one that failed, or None.

    First the cache at 8 bits, then half the context, then both, then less and less context. The prefill's
    share is taken as it was, though a shorter context has a smaller one.
    """
    context = record.context_tokens
    while context >= MIN_CONTEXT_TOKENS:
        for kv_bits in sorted({record.kv_bits, min(record.kv_bits, 8)}, reverse=True):
            share = context / record.context_tokens * (_KV8_SHARE if kv_bits < record.kv_bits else 1.0)
            total = record.total_bytes - round(record.kv_cache_bytes * (1 - share))
            if total <= _LOWER_SHARE * record.total_bytes:
                return LowerPlan(context_tokens=context, kv_bits=kv_bits, total_bytes=total)
        context //= 2
    return None


def unfinished(machine: Machine, *, with_told: bool = False, folder: Path | None = None) -> tuple[Unfinished, ...]:
    """Return the runs that did not end in order, the latest first.

    Args:
        machine: tells which start of the computer this is, and its crashes.
        with_told: also those that a person has been told of already (``mark_told``).
        folder: where the records are.
    """
    folder = folder or paths.runs_dir()
    suffixes = (SUFFIX, TOLD_SUFFIX) if with_told else (SUFFIX,)
    left = [(path, record) for suffix in suffixes for path in folder.glob(f"*{suffix}") if (record := read_left(path))]
    if not left:
        return ()
    boot = machine.boot()
    since_s = min(record.started_at_s for _, record in left)
    panics = machine.panics(since_s=since_s) or ()
    found = [judge(record, path, boot, panics) for path, record in left]
    return tuple(sorted(found, key=lambda run: -run.record.started_at_s))


def judge(record: RunRecord, path: Path, boot: Boot, panics: tuple[Panic, ...]) -> Unfinished:
    """Return how a run ended that left *record*, seen from the start *boot* of the computer."""
    recorded_boot = Boot(session=record.boot_session, started_at_s=record.boot_started_at_s)
    if recorded_boot.is_same_as(boot):
        return Unfinished(path=path, record=record, ending="killed")
    # A report is written when the computer has started again; the earliest one is that of this run.
    for panic in sorted(panics, key=lambda panic: panic.at_s):
        same = panic.session == record.boot_session if panic.session and record.boot_session else True
        if same and panic.at_s >= record.started_at_s:
            return Unfinished(path=path, record=record, ending="panic", panic=panic)
    return Unfinished(path=path, record=record, ending="restart")


def mark_told(runs: tuple[Unfinished, ...]) -> None:
    """Remember that a person has been told of *runs*: they are not news again.

    The next run that ends well drops them.
    """
    for run in runs:
        with contextlib.suppress(OSError):
            run.path.rename(run.path.with_suffix(TOLD_SUFFIX))
