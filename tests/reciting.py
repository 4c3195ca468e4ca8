"""A program that recites at a terminal, for tests of its keys: ``python tests/reciting.py one|chat [--quiet] TEXT…``.

Each TEXT is a turn of a model that thinks; words come at twenty a second. Its last line says how the reply ended,
which hints came, and that no thread is left.
"""

import sys
import threading

import click

from r1mac.engine.control import Control
from r1mac.engine.fake import RecitingSession
from r1mac.engine.request import GenerateRequest, Message
from r1mac.ui import interrupt, stream
from r1mac.ui.chat import Chat


def _request(messages: tuple[Message, ...]) -> GenerateRequest:
    return GenerateRequest(messages=messages, max_tokens=1000)


def _main() -> None:
    kind, *texts = [argument for argument in sys.argv[1:] if argument != "--quiet"]
    quiet = "--quiet" in sys.argv
    session = RecitingSession([text.replace("\\n", "\n") for text in texts], words_per_s=20)
    if kind == "chat":
        Chat(session=session, make_request=_request, opening=(), title="Reciter", quiet=quiet).run()
        click.echo(f"asked: {[request.messages[-1].text for request in session.requests]}")
    else:
        control = Control()
        with interrupt.stops(control):
            events = session.generate(_request((Message("user", "why?"),)), control)
            shown = stream.show(events, quiet=quiet, as_json=False, control=control)
        click.echo(f"ended: {shown.finished.reason}", err=True)
    click.echo(f"threads: {threading.active_count()}", err=True)


_main()
