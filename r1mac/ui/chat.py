"""The interactive chat: a prompt with history and several lines, and a few commands."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from r1mac import paths
from r1mac.engine.control import Control
from r1mac.engine.events import Event, Finished
from r1mac.engine.request import GenerateRequest, Message
from r1mac.errors import R1MacError, writing_to
from r1mac.ui import console, interrupt, stream
from r1mac.ui.steering import KEYS

HELP = (
    """\
/help    this text
/reset   forget the conversation
/save F  write the conversation to the file F (JSON, or text where F ends in .txt or .md)
/stats   counts and speeds of the last answer
/exit    leave (so does Ctrl-D)

Enter sends; Alt-Enter, or a \\ at the end of a line, begins a new line.
Ctrl-C stops the answer; once more, at the prompt, leaves.

While the model writes:
"""
    + KEYS
)


_COMMANDS = {"/help", "/?", "/reset", "/clear", "/save", "/stats", "/exit", "/quit", "/bye"}


class Generator(Protocol):
    """What answers: a session, or what stands for one."""

    def generate(self, request: GenerateRequest, control: Control | None = None) -> Iterator[Event]:
        """Yield the events of a reply; the last is Finished."""


OnTurn = Callable[[tuple[Message, ...], str, str, Finished], None]


@dataclass
class Chat:
    """One conversation at the terminal.

    Attributes:
        make_request: builds a request from the whole conversation.
        opening: messages that every conversation begins with (the system prompt).
        on_finished: is told of each answer.
        on_turn: is told of each turn, so that it can be kept: the conversation up to then without *opening*, the
            last thought and answer, and how it ended.
        messages: the conversation, which may have begun earlier. Where its last message is a question, the reply
            to it is asked for at once.
        begun: what to say of a conversation that began earlier.
        go_on: the command that goes on with a reply that was cut off.
    """

    session: Generator
    make_request: Callable[[tuple[Message, ...]], GenerateRequest]
    opening: tuple[Message, ...]
    title: str
    quiet: bool
    on_finished: Callable[[Finished], None] = lambda _finished: None
    on_turn: OnTurn = lambda _messages, _thought, _answer, _finished: None
    messages: list[Message] = field(default_factory=list)
    begun: str = ""
    go_on: str | None = None
    last: Finished | None = None

    def run(self) -> None:
        """Talk until the person leaves.

        Raises:
            KeyboardInterrupt: Ctrl-C at an empty prompt.
        """
        prompt = _make_prompt()
        console.note(f"{self.title}. /help for help, Ctrl-D to leave.")
        if self.begun:
            console.note(self.begun)
        if self.messages and self.messages[-1].role == "user":
            self._say(self.messages.pop().text)
        while True:
            try:
                text = prompt().strip()
            except EOFError:
                return
            if not text:
                continue
            # «/tmp is what?» is a question; a word alone that begins with a slash is a slip.
            if text.startswith("/") and (text.split()[0] in _COMMANDS or len(text.split()) == 1):
                if self._command(text):
                    return
                continue
            self._say(text)

    def _say(self, text: str) -> None:
        """Send the person's text and show the answer. An answer that was stopped stays in the conversation."""
        messages = (*self.messages, Message("user", text))
        control = Control()
        try:
            with interrupt.stops(control):
                events = self.session.generate(self.make_request((*self.opening, *messages)), control)
                shown = stream.show(events, quiet=self.quiet, as_json=False, control=control, go_on=self.go_on)
                self.last = shown.finished
                self.on_finished(shown.finished)
        except R1MacError as error:
            console.error(error.problem, error.hint)
            return
        self.messages = [*messages, Message("assistant", shown.answer)]
        self.on_turn(tuple(self.messages), shown.thought, shown.answer, shown.finished)

    def _command(self, text: str) -> bool:
        """Do what a line that begins with a slash says, and return whether to leave."""
        name, _, argument = text.partition(" ")
        match name:
            case "/exit" | "/quit" | "/bye":
                return True
            case "/help" | "/?":
                console.note(HELP)
            case "/reset" | "/clear":
                self.messages.clear()
                console.note("the conversation is forgotten")
            case "/stats":
                console.note(stream.format_stats(self.last.stats) if self.last else "there is no answer yet")
            case "/save":
                self._save(argument.strip())
            case _:
                console.note(f"there is no command {name}; /help lists them")
        return False

    def _save(self, name: str) -> None:
        if not name:
            console.note("say where: /save FILE")
            return
        conversation = [*self.opening, *self.messages]
        try:
            path = Path(name).expanduser()
            as_text = path.suffix.lower() in {".txt", ".md"}
            with writing_to(path):
                path.write_text(format_conversation(conversation, as_text=as_text), encoding="utf-8")
        except (R1MacError, OSError, RuntimeError) as error:  # RuntimeError: ~somebody who is not here
            console.note(f"not saved: {error}")
            return
        console.note(f"saved {len(conversation)} messages to {path}")


def format_conversation(messages: list[Message], *, as_text: bool) -> str:
    """Return a conversation as text for a person, or as JSON in the shape of the chat APIs."""
    if as_text:
        return "\n\n".join(f"## {message.role}\n\n{message.text}" for message in messages) + "\n"
    data = [{"role": message.role, "content": message.text} for message in messages]
    return json.dumps(data, ensure_ascii=False, indent=2) + "\n"


def _make_prompt() -> Callable[[], str]:
    """Return a function that reads one message from the terminal."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\") and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _clear_or_leave(event: Any) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    history_file = paths.history_file()
    try:
        history_file.parent.mkdir(parents=True, exist_ok=True)
        history_file.touch(mode=0o600)
        history: Any = FileHistory(str(history_file))
    except OSError:
        history = InMemoryHistory()
    # The prompt is not the result: on a redirected stdout it would be lost, and the file would hold it.
    session: Any = PromptSession(
        output=create_output(stdout=sys.stderr),
        history=history,
        key_bindings=keys,
        multiline=True,
        prompt_continuation="... ",
        enable_history_search=False,
    )

    def read() -> str:
        return str(session.prompt(">>> "))

    return read
