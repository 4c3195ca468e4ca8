"""What happened before: crashes of the whole computer, and runs that did not end."""

import time
from collections.abc import Iterator

from r1mac.doctor.examination import CheckResult, Examination
from r1mac.machine.readings import Panic

_RECENT_SECONDS = 72 * 3600


def check_panics(examination: Examination) -> Iterator[CheckResult]:
    """Name the crashes of the last three days that a model may have caused."""
    if examination.mac is None:
        return
    panics = examination.machine.panics(since_s=examination.now_s - _RECENT_SECONDS)
    if panics is None:
        yield CheckResult(
            name="crashes", status="ok", found="unknown: only an administrator may read the reports of this Mac"
        )
        return
    suspects = [panic for panic in panics if panic.cause != "other"]
    if not suspects:
        others = f"none by the GPU, {len(panics)} by something else" if panics else "none"
        yield CheckResult(name="crashes", status="ok", found=f"{others} in the last 72 hours")
        return
    latest = suspects[0]
    count = "once" if len(suspects) == 1 else f"{len(suspects)} times"
    yield CheckResult(
        name="crashes",
        status="warn",
        found=f"this Mac crashed {count} in the last 72 hours, last {_when(latest)}: {latest.reason}{_task(latest)}",
        why="the GPU driver of macOS loses count of its memory, mostly when several requests or models run at once"
        if latest.cause == "gpu"
        else "macOS itself got no memory or time for a minute and a half; what the GPU held could not be taken from it",
        fix="update macOS, and run one model and one request at a time"
        if latest.cause == "gpu"
        else "leave macOS more memory: `r1mac tune --status` shows the limit, `r1mac plan` lists smaller plans",
    )


def _when(panic: Panic) -> str:
    return time.strftime("%d %b %H:%M", time.localtime(panic.at_s))


def _task(panic: Panic) -> str:
    return f" (while {panic.task} ran)" if panic.task else ""


def check_last_run(examination: Examination) -> Iterator[CheckResult]:
    """Name the runs that did not end in order."""
    if not examination.unfinished:
        yield CheckResult(name="last run", status="ok", found="ended in order, or there was none")
    for run in examination.unfinished:
        yield CheckResult(
            name="last run",
            status="warn",
            found=run.describe(),
            why=run.advice() if run.needed_little else "the same plan may end the same way",
            fix=f"`r1mac -v run {run.record.model}` says more if it happens again"
            if run.needed_little
            else run.advice(),
        )
