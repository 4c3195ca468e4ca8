"""The last step: files and a plan become an engine."""

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from r1mac.plan.fit import MemoryPlan
from r1mac.prepare.files import PrepareEvent, Progress
from r1mac.prepare.target import Target

if TYPE_CHECKING:
    from r1mac.engine.load import Engine


def load(target: Target, plan: MemoryPlan, folder: Path) -> Generator[PrepareEvent, None, "Engine"]:
    """Load the model in *folder* as *plan* says, and return its engine."""
    from r1mac.engine.load import load_engine

    steps = load_engine(
        folder,
        compute=plan.compute,
        context_tokens=plan.context_tokens,
        prefill_step_tokens=plan.prefill_step_tokens,
    )
    while True:
        try:
            done, total = next(steps)
        except StopIteration as stop:
            engine: Engine = stop.value
            return engine
        yield Progress(task="load", title=target.title, done=done, total=total)
