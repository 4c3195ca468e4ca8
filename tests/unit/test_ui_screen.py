"""ui.screen: the line below the text never gets into it. Seen through a terminal emulator."""

import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1mac.ui import screen as screen_module
from r1mac.ui.hint_line import HintLine
from r1mac.ui.screen import Screen, column_after, fitting
from tests.terminal import Terminal, TerminalStream

COLUMNS, LINES = 12, 6
STATUS = "status"


@pytest.fixture(name="show")
def _show(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Terminal, Screen]]:
    """Return a function that makes a terminal of 12 columns and 6 lines, and a screen on it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Screen, "columns", lambda _self: COLUMNS)

    def make() -> tuple[Terminal, Screen]:
        terminal = Terminal(COLUMNS, LINES)
        monkeypatch.setattr(sys, "stdout", TerminalStream(terminal))
        monkeypatch.setattr(sys, "stderr", TerminalStream(terminal))
        return terminal, Screen()

    return make


_pieces = st.lists(
    st.tuples(st.sampled_from(["thought", "answer", "status"]), st.text(alphabet="ab é\n", max_size=30)), max_size=12
)


@settings(max_examples=50, deadline=None)
@given(_pieces)
def test_text_is_whole_whatever_is_drawn_below_it(pieces: list[tuple[str, str]]) -> None:
    """After every piece the terminal has the text as if nothing else were there, and the status below its end."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        terminal, screen = _show.__wrapped__(monkeypatch)()  # type: ignore[attr-defined]
        plain, status = Terminal(COLUMNS, LINES), ""
        for part, text in pieces:
            if part == "status":
                status = STATUS if status != STATUS else "changed"
                screen.status(status)
            else:
                getattr(screen, part)(text)
                plain.feed(text)
            assert _without(terminal.lines, status) == plain.lines
        screen.close()
        assert terminal.lines == plain.lines


def _without(lines: list[str], status: str) -> list[str]:
    """Return *lines* without the status, which is the last."""
    if status:
        assert lines.pop() == status
    while lines and not lines[-1]:
        lines.pop()
    return lines


def test_a_note_breaks_the_line_and_the_text_goes_on(show: Callable[[], tuple[Terminal, Screen]]) -> None:
    """A note in the middle of a line stands on its own one, above the status."""
    terminal, screen = show()
    screen.status(STATUS)
    screen.thought("one two")
    screen.note("[note]")
    screen.thought(" three")

    assert terminal.lines == ["one two", "[note]", "three", STATUS]


def test_while_a_line_is_typed_nothing_else_moves(show: Callable[[], tuple[Terminal, Screen]]) -> None:
    """Text, notes and status wait until the line is done, and lose nothing."""
    terminal, screen = show()
    screen.status(STATUS)
    screen.thought("one")
    line = HintLine()
    screen.hold()
    for key in ["h", "i", "!", "\x7f"]:
        line.press(key)
        screen.edit(line.shown(COLUMNS))
        screen.thought(" two" if key == "i" else "")
        screen.note("[note]") if key == "!" else None
        screen.status("other")

    assert terminal.lines == ["one", "hint: hi"]
    screen.release()
    assert terminal.lines == ["one", "two", "[note]", "other"]


def test_a_new_window_size_loses_no_letter(
    show: Callable[[], tuple[Terminal, Screen]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal has wrapped the text anew when the next word comes: it begins a line, below what was there."""
    terminal, screen = show()
    screen.status(STATUS)
    screen.thought("one two thr")
    monkeypatch.setattr(Screen, "columns", lambda _self: 11)
    screen.thought("ee")
    screen.thought(" four")

    assert terminal.lines == ["one two thr", "ee four", STATUS]


def test_a_model_cannot_speak_to_the_terminal(show: Callable[[], tuple[Terminal, Screen]]) -> None:
    """Control characters of a reply are shown as signs; line breaks and tabs work."""
    terminal, screen = show()
    screen.thought("a\x1b[2Jb\x9b\r\n")
    screen.answer("c\x07\td\n")

    assert terminal.lines == ["a␛[2Jb\ufffd", "c␇      d"]


def test_another_program_has_the_terminal_for_a_while(show: Callable[[], tuple[Terminal, Screen]]) -> None:
    """While the shell is there no status is drawn; afterwards it is, below what the shell wrote."""
    terminal, screen = show()
    screen.status(STATUS)
    screen.thought("one")
    screen.leave()
    screen.status("changed")
    assert terminal.lines == ["one"]

    terminal.feed("\n$ fg\n")
    screen.come_back()
    assert terminal.lines == ["one", "$ fg", "changed"]


@pytest.mark.parametrize("term", ["dumb", None])
def test_a_terminal_without_control_sequences_gets_none(
    term: str | None, show: Callable[[], tuple[Terminal, Screen]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where TERM says that nothing is understood only text is written."""
    monkeypatch.setenv("TERM", term) if term else monkeypatch.delenv("TERM")
    _, screen = show()
    screen.status(STATUS)
    screen.thought("one")
    screen.close()

    assert sys.stderr.getvalue() == "one\n"  # type: ignore[attr-defined]


def test_no_color_keeps_the_status(
    show: Callable[[], tuple[Terminal, Screen]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_COLOR takes the dimness away and nothing else."""
    monkeypatch.setenv("NO_COLOR", "1")
    terminal, screen = show()
    screen.status(STATUS)
    screen.thought("one")

    assert terminal.lines == ["one", STATUS]
    assert "\x1b[2m" not in sys.stderr.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("column", "text", "end"),
    [
        (0, "", 0),
        (3, "ab", 5),
        (8, "ab", 10),  # behind the last column
        (10, "a", 1),
        (3, "ab\ncd", 2),
        (3, "ab\n", 0),
        (0, "\t", 8),
        (9, "\t", 9),
        (10, "\t", 10),
        (0, "因此", 4),
        (9, "因", 2),  # no room for two columns
        (0, "e\u0301x", 2),
        (0, "🙂", 2),
        (0, "x" * 25, 5),
    ],
)
def test_columns_are_counted_as_a_terminal_does(column: int, text: str, end: int) -> None:
    assert column_after(column, text, 10) == end


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (50, "thinking · 12 tokens · a answer · ? keys"),
        (40, "thinking · 12 tokens · a answer · ? keys"),
        (39, "thinking · 12 tokens · ? keys"),
        (20, "thinking · ? keys"),
        (10, "thinking"),
        (4, "thin"),
    ],
)
def test_a_narrow_terminal_loses_the_least_useful(columns: int, shown: str) -> None:
    assert fitting("thinking · 12 tokens · a answer · ? keys", columns) == shown


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (["a", "b"], "ab"),
        ([*"one two", "\x17"], "one"),
        ([*"one two", "\x15", "x"], "x"),
        ([*"ac", "\x1b[D", "b"], "abc"),
        ([*"bc", "\x01", "a", "\x05", "d"], "abcd"),
        ([*"abX", "\x7f", "c"], "abc"),
        (["\x7f", "\x1b[D", "\x1b[A", "\x00", "a"], "a"),
        ([*"因此", "\x7f"], "因"),
    ],
)
def test_a_hint_is_edited(keys: list[str], text: str) -> None:
    """The keys of a shell's line work; others do nothing."""
    line = HintLine()

    assert {line.press(key) for key in keys} == {None}
    assert line.text == text
    assert line.press("\n") == "send"


@pytest.mark.parametrize("keys", [["\n"], [" ", "\n"], ["a", "\x1b"]])
def test_an_empty_hint_and_escape_send_nothing(keys: list[str]) -> None:
    line = HintLine()

    assert [line.press(key) for key in keys][-1] == "drop"


@pytest.mark.parametrize("text", ["short", "a long hint that does not fit", "因此蓝光散射得更多"])
@pytest.mark.parametrize("left", [0, 3])
def test_a_long_hint_stays_on_one_line(text: str, left: int) -> None:
    """Whatever is typed, the line fits and shows what is around the cursor."""
    line, terminal = HintLine(), Terminal(20, 3)
    for key in [*text, *["\x1b[D"] * left]:
        line.press(key)
    terminal.feed(line.shown(20))

    assert len(terminal.lines) == 1
    visible = terminal.lines[0].removeprefix("hint: ")
    assert visible in text
    assert text[: len(text) - left][-2:] in visible


def test_the_width_of_what_is_no_terminal_is_known() -> None:
    """Where nobody says how wide it is, eighty columns are taken."""
    assert screen_module.Screen().columns() == 80
