"""What was planned when a run was cut off: a small record on the disk before each run, taken away when it ends.

A record of a process that is gone (``machine.process_records``) is one of a run that was killed, that crashed, or
that took the computer down with it.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from r1mac import paths
from r1mac.machine.base import Machine
from r1mac.machine.process_records import ProcessRecord, read_record
from r1mac.plan.fit import MemoryPlan

logger = logging.getLogger(__name__)

Phase = Literal["load", "run"]

TOLD_SUFFIX = ".told"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run's plan, and where it ran.

    Attributes:
        model: what to type for the model.
        bits: the width to type with it, for the settings may be others by then; None where there is no choice.
        title: the model, for a person.
        phase: ``"load"`` until the model is loaded.
        boot_session: the kernel's name of the computer's start; None where it has none.
        boot_started_at_s: when the computer started, in seconds since 1970, as is started_at_s.
    """

    model: str
    bits: int | None
    title: str
    total_bytes: int
    weight_bytes: int
    kv_cache_bytes: int
    kv_bits: int
    context_tokens: int
    prefill_step_tokens: int
    limit_bytes: int
    phase: Phase
    pid: int
    started_at_s: float
    boot_session: str | None
    boot_started_at_s: int | None


class Recording:
    """The record of the run that goes on."""

    def __init__(self, folder: Path, record: RunRecord) -> None:
        self._folder = folder
        self._file = ProcessRecord(folder, mode=0o600, lasting=True)
        self._record = record

    def enter(self, phase: Phase) -> None:
        """Put down that the run has come to *phase*. A record that cannot be written is done without."""
        self._record = replace(self._record, phase=phase)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file.write(json.dumps(asdict(self._record)).encode())
        except OSError as error:
            logger.warning("no record of this run is kept: %s", error)

    def replan(self, plan: MemoryPlan) -> None:
        """Put down that the run goes on with another plan."""
        self._record = replace(self._record, **_terms(plan))
        self.enter(self._record.phase)

    def end(self, *, well: bool) -> None:
        """Take the record away; after a run that ended *well* also those that a person has been told of."""
        self._file.remove()
        if well:
            with contextlib.suppress(OSError):
                for told in self._folder.glob(f"*{TOLD_SUFFIX}"):
                    told.unlink(missing_ok=True)


@contextlib.contextmanager
def recorded(
    plan: MemoryPlan, machine: Machine, *, model: str, bits: int | None, title: str, folder: Path | None = None
) -> Iterator[Recording]:
    """Keep a record of *plan* on the disk until the block ends, in whatever way Python notices.

    SIGTERM and SIGHUP (a closed Terminal window, a computer that is shut down) end the block in order too, and
    then the process, so that they leave no record. The block begins in the phase ``"load"``.
    """
    boot = machine.boot()
    record = RunRecord(
        model=model,
        bits=bits,
        title=title,
        **_terms(plan),
        phase="load",
        pid=os.getpid(),
        started_at_s=time.time(),
        boot_session=boot.session,
        boot_started_at_s=boot.started_at_s,
    )
    recording = Recording(folder or paths.runs_dir(), record)
    with _ended_in_order():
        recording.enter("load")
        well = False
        try:
            yield recording
            well = True
        finally:
            recording.end(well=well)


def _terms(plan: MemoryPlan) -> dict[str, Any]:
    """Return what a record says of a plan."""
    return {
        "total_bytes": plan.total_bytes,
        "weight_bytes": plan.weight_bytes,
        "kv_cache_bytes": plan.kv_cache_bytes,
        "kv_bits": plan.kv_bits,
        "context_tokens": plan.context_tokens,
        "prefill_step_tokens": plan.prefill_step_tokens,
        "limit_bytes": plan.limit_bytes,
    }


def read_left(path: Path) -> RunRecord | None:
    """Return the record in *path*, or None while its process lives, or if it is no record."""
    record = read_record(path)
    return None if record is None or record.living else _parsed(record.content)


_KINDS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "bits": (int, type(None)),
    "title": (str,),
    "phase": (str,),
    "started_at_s": (int, float),
    "boot_session": (str, type(None)),
    "boot_started_at_s": (int, type(None)),
}


def _parsed(content: bytes) -> RunRecord | None:
    try:
        data: Any = json.loads(content)
        values = {item.name: data[item.name] for item in fields(RunRecord)}
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not all(type(value) in _KINDS.get(name, (int,)) for name, value in values.items()):
        return None
    sizes = (values["total_bytes"], values["context_tokens"], values["kv_cache_bytes"], values["limit_bytes"])
    return RunRecord(**values) if min(sizes) > 0 and values["phase"] in {"load", "run"} else None


class _Terminated(KeyboardInterrupt):  # what a block expects already: Ctrl-C
    """A signal that asks the process to end."""


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the block as Ctrl-C does, and end the process afterwards.

    Signals belong to the main thread; elsewhere, and where somebody handles them already, nothing is changed.
    """
    received: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        raise _Terminated

    changed = []
    if threading.current_thread() is threading.main_thread():
        changed = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
        if received:
            for stream in (sys.stdout, sys.stderr):  # what is in their buffers would die with the process
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os.kill(os.getpid(), received[0])
