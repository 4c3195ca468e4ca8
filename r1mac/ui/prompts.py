"""Many prompts answered side by side: one line of JSON each on stdout, as they are done."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import click

from r1mac.engine.control import Control
from r1mac.engine.events import Finished, Notice, TextDelta
from r1mac.engine.request import GenerateRequest, Message
from r1mac.errors import R1MacError
from r1mac.prepare.prompts import Asked
from r1mac.ui import console

if TYPE_CHECKING:
    from r1mac.engine.batch import Batch


@dataclass
class _Answer:
    asked: Asked
    thought: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    notices: list[dict[str, str]] = field(default_factory=list)


def answer_all(
    batch: "Batch",
    asked: Sequence[Asked],
    make_request: Callable[[tuple[Message, ...]], GenerateRequest],
    control: Control,
    *,
    quiet: bool,
) -> int:
    """Answer every conversation of *asked*, write each as it is done, and return how many could not be.

    What *control* cancels is written with what there is; what has not begun by then is not.
    """
    running: dict[int, _Answer] = {}
    failed = 0
    for one in asked:
        try:
            running[batch.submit(make_request(one.messages), control)] = _Answer(one)
        except R1MacError as error:
            failed += 1
            _write(one, error=console.error_fields(error))
    done = 0
    while len(batch):
        for ticket, event in batch.step():
            answer = running[ticket]
            match event:
                case R1MacError():
                    failed += 1
                    _write(answer.asked, error=console.error_fields(event))
                case TextDelta():
                    (answer.thought if event.channel == "think" else answer.text).append(event.text)
                case Notice():
                    answer.notices.append({"kind": event.kind, "text": event.text})
                case Finished() if event.reason != "cancelled" or event.stats.generated_tokens:
                    done += 1
                    _write(
                        answer.asked,
                        thought="".join(answer.thought),
                        answer="".join(answer.text),
                        reason=event.reason,
                        notices=answer.notices,
                        stats=asdict(event.stats),
                    )
                    if not quiet:
                        console.note(f"{done} of {len(asked)} done")
    return failed


def _write(asked: Asked, **fields: object) -> None:
    named = {"id": asked.name} if asked.name is not None else {}
    click.echo(json.dumps({"line": asked.line, **named, **fields}, ensure_ascii=False))
    sys.stdout.flush()
