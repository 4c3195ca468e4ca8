"""Bars for what takes time: downloads, conversions, loading."""

import sys
from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import click

from r1mac import log
from r1mac.prepare.files import Note, PrepareEvent, Progress
from r1mac.ui import console

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_Result = TypeVar("_Result")

_VERBS = {
    "download": "downloading",
    "verify": "verifying",
    "calibrate": "calibrating with",
    "weigh": "weighing the matrices of",
    "compare": "comparing choices of widths for",
    "convert": "converting",
    "measure": "measuring the results of",
    "evaluate": "evaluating",
    "solve": "putting problems to",
    "load": "loading",
}
_KEPT = {"download": "downloaded", "convert": "converted", "measure": "converted"}
_BYTE_TASKS = {"download", "verify", "convert"}
_UNITS = {"solve": "problems"}


class ProgressDisplay:
    """Shows preparation on stderr: bars on a terminal, a line a task elsewhere, nothing when quiet.

    With *as_json* every event is written to stdout as one JSON object instead.
    """

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self._quiet = quiet
        self._as_json = as_json
        self._on_terminal = sys.stderr.isatty()
        self._bars: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._announced: set[str] = set()
        # What an interruption does not lose.
        self._kept: str | None = None

    def __enter__(self) -> Self:
        log.quieten_libraries()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def run(self, steps: Generator[PrepareEvent, None, _Result]) -> _Result:
        """Show the events of *steps* and return its value."""
        while True:
            try:
                event = next(steps)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            except BaseException as error:
                # A half-drawn bar would stand in the middle of what is said next.
                self.__exit__(None, None, None)
                if isinstance(error, KeyboardInterrupt) and self._kept is not None and not self._quiet:
                    console.note(f"\nstopped; what has been {self._kept} is kept, and the same command goes on with it")
                raise
            if isinstance(event, Progress) and event.task != "verify":
                self._kept = _KEPT.get(event.task)
            self._show(event)

    def wait(self, name: str) -> None:
        """Say that another process is at work on the model *name*."""
        self._show(Note(f"another r1mac is preparing {name}; waiting for it"))

    def _show(self, event: PrepareEvent) -> None:
        if self._as_json:
            import json

            click.echo(json.dumps(console.plain(event), ensure_ascii=False))
        elif self._quiet:
            return
        elif isinstance(event, Note):
            console.note(event.text)
        elif self._on_terminal:
            self._draw(event)
        elif event.task not in self._announced:
            self._announced.add(event.task)
            console.note(f"{_VERBS[event.task]} {event.title} …")

    def _draw(self, event: Progress) -> None:
        if self._bars is None:
            self._bars = _make_bars()
            self._bars.start()
        if event.task not in self._tasks:
            self._tasks[event.task] = self._bars.add_task(
                f"{_VERBS[event.task]} {event.title}",
                total=event.total,
                completed=event.done,  # what an earlier run did is no part of this one's rate
                in_bytes=event.task in _BYTE_TASKS,
                unit=_UNITS.get(event.task, "layers"),
            )
        self._bars.update(self._tasks[event.task], completed=event.done, total=event.total)


def _make_bars() -> "RichProgress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    from r1mac.units import format_size

    class Amount(ProgressColumn):
        """Done, total and rate, in the task's own unit."""

        def render(self, task: Task) -> Text:
            if not task.fields["in_bytes"]:
                return Text(f"{task.completed:.0f}/{task.total:.0f} {task.fields['unit']}")
            rate = f"  {format_size(round(task.speed))}/s" if task.speed else ""
            return Text(f"{format_size(round(task.completed))} of {format_size(round(task.total or 0))}{rate}")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        Amount(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
