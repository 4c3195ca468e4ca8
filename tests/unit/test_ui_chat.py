"""The chat: its commands, its conversation, and what keeps it alive. The prompt is scripted."""

import json
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from r1mac import paths
from r1mac.engine.control import Control
from r1mac.engine.events import Event, Finished, TextDelta
from r1mac.engine.fake import RecitingSession
from r1mac.engine.request import GenerateRequest, Message
from r1mac.errors import DoesNotFit
from r1mac.ui import chat as chat_module
from r1mac.ui import interrupt
from r1mac.ui.chat import Chat

SYSTEM = Message("system", "Be brief.")


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Chat]:
    """Return a function that lets a person type *lines* and a model recite *answers*, then returns the chat."""

    def run(
        lines: Iterable[str],
        answers: Iterable[str | Exception] = (),
        *,
        session: RecitingSession | None = None,
        **options: Any,
    ) -> Chat:
        typed = iter(lines)

        def prompt() -> str:
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None  # Ctrl-D

        monkeypatch.setattr(chat_module, "_make_prompt", lambda: prompt)
        chat = Chat(
            session=session or RecitingSession(answers),
            make_request=lambda messages: GenerateRequest(messages=messages, max_tokens=100),
            opening=(SYSTEM,),
            title="Tiny",
            quiet=False,
            **options,
        )
        chat.run()
        return chat

    return run


def test_each_question_brings_the_whole_conversation(
    talk: Callable[..., Chat], capsys: pytest.CaptureFixture[str]
) -> None:
    """A turn is asked with the system prompt and all turns before it; answers are kept without their thoughts."""
    chat = talk(["1+1?", "  and 2+2? \n"], ["so</think>\n\nTwo.", "so</think>\n\nFour."])

    assert chat.session.requests[-1].messages == (
        SYSTEM,
        Message("user", "1+1?"),
        Message("assistant", "Two."),
        Message("user", "and 2+2?"),
    )
    assert chat.messages[-1] == Message("assistant", "Four.")
    assert capsys.readouterr().out == "Two.\nFour.\n"


def test_each_turn_can_be_kept(talk: Callable[..., Chat]) -> None:
    """Who keeps conversations is told of each turn: all messages but the opening, the thought, and how it ended."""
    kept: list[tuple[list[str], str, str, str]] = []

    def keep(messages: tuple[Message, ...], thought: str, answer: str, finished: Finished) -> None:
        kept.append(([message.text for message in messages], thought, answer, finished.reason))

    error = DoesNotFit("the conversation has 9000 tokens", hint="/reset")
    talk(["1+1?", "too long", "2+2?"], ["so</think>\n\nTwo.", error, "hm</think>Four."], on_turn=keep)

    assert kept == [
        (["1+1?", "Two."], "so", "Two.", "stop"),
        (["1+1?", "Two.", "2+2?", "Four."], "hm", "Four.", "stop"),
    ]


YESTERDAY = [Message("user", "1+1?"), Message("assistant", "Two.")]


def test_a_conversation_goes_on(talk: Callable[..., Chat], capsys: pytest.CaptureFixture[str]) -> None:
    """A chat that began earlier says so, and asks with all that was said."""
    chat = talk(["2+2?"], ["</think>Four."], messages=[*YESTERDAY], begun="going on with yesterday's chat, 1 turn")

    assert "going on with yesterday's chat, 1 turn" in capsys.readouterr().err.splitlines()
    assert chat.session.requests[0].messages == (SYSTEM, *YESTERDAY, Message("user", "2+2?"))


def test_a_question_without_a_reply_is_answered_first(talk: Callable[..., Chat]) -> None:
    """A chat that was cut off in a reply goes on with it before anything is typed."""
    chat = talk(["and 3+3?"], ["</think>Four.", "</think>Six."], messages=[*YESTERDAY, Message("user", "2+2?")])

    assert chat.session.requests[0].messages == (SYSTEM, *YESTERDAY, Message("user", "2+2?"))
    assert [message.text for message in chat.messages][2:] == ["2+2?", "Four.", "and 3+3?", "Six."]


@pytest.mark.parametrize("line", ["/exit", "/quit", "/bye", " /exit "])
def test_leaving(line: str, talk: Callable[..., Chat]) -> None:
    """/exit leaves at once: what was typed after it is not sent."""
    chat = talk([line, "not sent"], ["x"])

    assert chat.session.requests == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/help", "/reset   forget the conversation"),
        ("/?", "/save F"),
        ("/stats", "there is no answer yet"),
        ("/save", "say where: /save FILE"),
        ("/save   ", "say where: /save FILE"),
        ("/unknown", "there is no command /unknown; /help lists them"),
        ("/etc/hosts", "there is no command /etc/hosts"),
        ("/Help", "there is no command /Help"),
    ],
)
def test_commands_speak_on_stderr_and_ask_nothing(
    line: str, said: str, talk: Callable[..., Chat], capsys: pytest.CaptureFixture[str]
) -> None:
    """A line that begins with a slash is never sent to the model, and its effect is told on stderr."""
    chat = talk([line, "", "   "])

    out, err = capsys.readouterr()
    assert said in err
    assert out == ""
    assert chat.session.requests == []


def test_help_names_every_command(talk: Callable[..., Chat], capsys: pytest.CaptureFixture[str]) -> None:
    """The commands that /help lists are all known."""
    names = [line.split()[0] for line in chat_module.HELP.splitlines() if line.startswith("/")]
    talk([*(name for name in names if name != "/exit"), "/exit"])

    assert "answer now" in chat_module.HELP
    assert names == ["/help", "/reset", "/save", "/stats", "/exit"]
    assert "there is no command" not in capsys.readouterr().err


def test_reset_forgets_all_but_the_system_prompt(talk: Callable[..., Chat]) -> None:
    """After /reset the next question begins a conversation of its own."""
    chat = talk(["1+1?", "/reset", "2+2?"], ["</think>Two.", "</think>Four."])

    assert chat.session.requests[-1].messages == (SYSTEM, Message("user", "2+2?"))
    assert chat.messages == [Message("user", "2+2?"), Message("assistant", "Four.")]


def test_stats_are_those_of_the_last_answer(talk: Callable[..., Chat], capsys: pytest.CaptureFixture[str]) -> None:
    """/stats repeats the counts of the last answer."""
    talk(["1+1?", "/stats"], ["</think>Two and no more."])

    lines = [line for line in capsys.readouterr().err.splitlines() if "wrote 4 tokens" in line]
    assert len(lines) == 2
    assert lines[0] == lines[1]


JSON_TEXT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "é🙂"},
]
PLAIN_TEXT = "## system\n\nBe brief.\n\n## user\n\n1+1?\n\n## assistant\n\né🙂\n"


@pytest.mark.parametrize("name", ["talk.json", "talk", "my talk.data", "talk.txt", "talk.md", "talk.TXT"])
def test_saving(name: str, talk: Callable[..., Chat], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/save writes JSON in the shape of the chat APIs, or text where the name ends in .txt or .md, as /help says."""
    path = tmp_path / name
    talk(["1+1?", f"/save {path}"], ["so</think>\n\né🙂"])

    content = path.read_text(encoding="utf-8")
    if path.suffix.lower() in {".txt", ".md"}:
        assert content == PLAIN_TEXT
    else:
        assert json.loads(content) == JSON_TEXT
    assert f"saved 3 messages to {path}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["no/such/folder/talk.json", ".", "~no-such-person-here/talk.json"])
def test_saving_that_fails_loses_nothing(
    name: str,
    talk: Callable[..., Chat],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file that cannot be written is told, and the conversation goes on."""
    monkeypatch.chdir(tmp_path)

    chat = talk([f"/save {name}", "1+1?"], ["</think>Two."])

    assert "not saved: " in capsys.readouterr().err
    assert chat.messages[-1].text == "Two."


def test_an_error_keeps_the_chat_alive(talk: Callable[..., Chat], capsys: pytest.CaptureFixture[str]) -> None:
    """A question that cannot be answered is told with its hint, and is not part of the conversation."""
    error = DoesNotFit("the conversation has 9000 tokens", hint="start a new conversation (/reset)")

    chat = talk(["1+1?", "too long", "2+2?"], ["</think>Two.", error, "</think>Four."])

    err = capsys.readouterr().err
    assert "error: the conversation has 9000 tokens" in err
    assert "(/reset)" in err
    assert [message.text for message in chat.messages] == ["1+1?", "Two.", "2+2?", "Four."]


class _Interrupted(RecitingSession):
    """A session during whose first answer somebody presses Ctrl-C *presses* times."""

    def __init__(self, answers: Iterable[str], *, presses: int) -> None:
        super().__init__(answers)
        self._presses = presses

    def generate(self, request: GenerateRequest, control: Control | None = None) -> Iterator[Event]:
        for event in super().generate(request, control):
            while isinstance(event, TextDelta) and event.channel == "answer" and self._presses:
                self._presses -= 1
                signal.raise_signal(signal.SIGINT)
            yield event


def test_ctrl_c_stops_the_answer_only(talk: Callable[..., Chat], capsys: pytest.CaptureFixture[str]) -> None:
    """One Ctrl-C ends the answer; what was said of it stays in the conversation, which goes on."""
    chat = talk(["1+1?", "2+2?"], session=_Interrupted(["</think>Two and more", "</think>Four."], presses=1))

    assert [message.text for message in chat.messages] == ["1+1?", "Two", "2+2?", "Four."]
    assert "[stopped]" in capsys.readouterr().err


def test_a_second_ctrl_c_leaves(talk: Callable[..., Chat]) -> None:
    """Ctrl-C while the answer is already being stopped ends the program as Ctrl-C does elsewhere."""
    with pytest.raises(KeyboardInterrupt):
        talk(["1+1?"], session=_Interrupted(["</think>Two and more"], presses=2))


def test_ctrl_c_is_pythons_again_afterwards() -> None:
    """Outside the block Ctrl-C means what it did before, also where the block was left by an error."""
    before, control = signal.getsignal(signal.SIGINT), Control()

    def block() -> None:
        with interrupt.stops(control):
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()

    assert control.cancelled
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("hello\r", "hello"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("one\x1b\rtwo\r", "one\ntwo"),  # Alt-Enter
        ("one\\\r\\\rtwo\r", "one\n\ntwo"),
        ("path\\\x1b[D\r", "path\\"),  # the cursor is before the backslash: Enter sends
        ("wrong\x03right\r", "right"),  # Ctrl-C clears the line
        ("\x1b[200~two\nlines\x1b[201~\r", "two\nlines"),  # pasted
        ("é🙂\r", "é🙂"),
    ],
)
def test_keys_of_the_prompt(keys: str, text: str) -> None:
    """Enter sends; Alt-Enter, or Enter behind a backslash, begins a new line; Ctrl-C clears."""
    assert _type(keys) == text


@pytest.mark.parametrize(("keys", "error"), [("\x03", KeyboardInterrupt), ("\x04not sent\r", EOFError)])
def test_leaving_at_an_empty_prompt(keys: str, error: type[BaseException]) -> None:
    """Ctrl-C and Ctrl-D at an empty prompt leave."""
    with pytest.raises(error):
        _type(keys)


def test_history_is_kept_for_its_owner_alone() -> None:
    """What was typed is offered again the next time, from a file that nobody else can read."""
    _type("first question\r")

    assert _type("\x1b[A\r") == "first question"
    assert paths.history_file().stat().st_mode & 0o777 == 0o600


def test_a_prompt_without_a_place_for_history_works() -> None:
    """Where the history cannot be written the prompt works without."""
    paths.history_file().parent.write_text("a file where a folder should be", encoding="utf-8")

    assert _type("hello\r") == "hello"


def _type(keys: str) -> str:
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        pipe.close()  # a prompt that waits for more ends with EOFError
        return chat_module._make_prompt()()


def test_a_question_about_a_path_is_asked(talk: Callable[..., Chat]) -> None:
    """A sentence that begins with a slash is no command, and goes to the model."""
    chat = talk(["/tmp is what?"], answers=["so</think>\n\nA folder."])

    assert [message.text for message in chat.messages] == ["/tmp is what?", "A folder."]
