"""Keys at a real terminal while a reply is written: what they do, and how the terminal is left."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from tests.cli.conftest import COMMAND, ROOT
from tests.terminal import Terminal, TerminalStream

# At twenty words a second nobody is late with a key.
THOUGHT = " ".join(f"thought{number}" for number in range(200))
END = "</think>\\n\\nThe answer is four."
TURN = THOUGHT + END
FORTY = " ".join(f"t{number}" for number in range(40))
SIXTY = " ".join(f"t{number}" for number in range(60))
# Keys that come sooner one after another are a text that is typed.
APART_SECONDS = 0.4
SHORT = "short thought</think>\\n\\nThe answer is four and no more than that."
RECITE = (sys.executable, str(ROOT / "tests" / "reciting.py"))
# What a shell would find: the terminal's mode before and after, and keys that nobody took.
AROUND = """
trap : INT
stty -a >"$BEFORE"
"$@"
stty -a >"$AFTER"
"$PYTHON" -c 'import select, sys; print("left over:", len(select.select([0], [], [], 0.05)[0]))'
"""


class Person:
    """Somebody at a terminal of 80 columns and 24 lines, on which *command* runs."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.screen = Terminal(80, 24)
        self.child = pexpect.spawn(
            command[0], command[1:], env=environment, encoding="utf-8", timeout=60, dimensions=(24, 80)
        )
        self.child.logfile_read = TerminalStream(self.screen)
        self._typed_at = time.monotonic()

    def press(self, keys: str) -> None:
        """Type *keys* as fast as a person who knows what comes: the program can tell them from those before."""
        time.sleep(max(0.0, self._typed_at + APART_SECONDS - time.monotonic()))
        self.child.send(keys)
        self._typed_at = time.monotonic()

    def sees_keys_taken(self) -> None:
        """Wait until the terminal gives the program key by key; what was typed before is dropped then."""
        assert self.child.waitnoecho(timeout=60)
        self._typed_at = time.monotonic()

    @property
    def last_thought(self) -> int:
        """The number of the last word of the thought that is to be seen."""
        return int(re.findall(r"thought(\d+)", _run_together(" ".join(self.screen.lines)))[-1])

    def sees(self, text: str) -> None:
        """Wait until *text* comes."""
        self.child.expect_exact(text)

    def stays(self) -> str:
        """Return all that is to be seen when the program has ended."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        return "\n".join(self.screen.lines)


@pytest.fixture(name="people")
def _people() -> Iterator[list[Person]]:
    """Return a list whose members' programs are ended after the test."""
    people: list[Person] = []
    yield people
    for person in people:
        person.child.close(force=True)


@pytest.fixture(name="at_terminal")
def _at_terminal(environment: dict[str, str], tmp_path: Path, people: list[Person]) -> Iterator[Callable[..., Person]]:
    """Return a function that runs a command at a terminal; afterwards the terminal must be as it was before."""
    before, after = tmp_path / "before", tmp_path / "after"
    environment |= {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHON": sys.executable}
    environment |= {"BEFORE": str(before), "AFTER": str(after)}

    def run(*command: str) -> Person:
        people.append(Person(["/bin/sh", "-c", AROUND, "sh", *command], environment))
        return people[-1]

    yield run
    assert after.read_text(encoding="utf-8") == before.read_text(encoding="utf-8")


@pytest.mark.parametrize("key", ["a", "A", "\r"])
def test_answer_now(key: str, at_terminal: Callable[..., Person]) -> None:
    """The thought ends where it is and the answer follows; no thread is left and no key."""
    person = at_terminal(*RECITE, "one", TURN)
    person.sees("thought9")
    person.press(key)

    shown = person.stays()
    assert "[closing the thought; the answer follows]\n\nThe answer is four.\nprompt" in shown
    assert "thought150" not in shown
    assert shown.endswith("ended: stop\nthreads: 1\nleft over: 0")


@pytest.mark.parametrize("key", ["p", " "])
def test_pause(key: str, at_terminal: Callable[..., Person]) -> None:
    """Nothing comes while it is paused, a line says how to go on, and then no word is missing."""
    person = at_terminal(*RECITE, "one", TURN)
    person.sees("thought9")
    person.press(key)
    person.sees("paused · p goes on · a answer")
    person.child.expect(pexpect.TIMEOUT, timeout=0.5)
    before, last = person.screen.lines, person.last_thought
    person.child.expect(pexpect.TIMEOUT, timeout=0.7)
    assert person.screen.lines == before
    person.press(key)
    person.sees(f"thought{last + 6}")
    person.press("a")

    shown = person.stays()
    assert _thought(last + 6) in _run_together(shown)
    assert "paused" not in shown


def test_the_line_below_the_thought(at_terminal: Callable[..., Person]) -> None:
    """While it thinks a line says how far it is and what can be done; the text stays clear of it."""
    person = at_terminal(*RECITE, "one", TURN)
    person.sees("thinking · 20 tokens at 20/s · ≤ 49 s left · a answer · p pause · ? keys")
    person.press("a")

    shown = person.stays()
    assert _thought(19) in _run_together(shown)
    assert "tokens at 20/s" not in shown


def test_a_hint(at_terminal: Callable[..., Person]) -> None:
    """What is typed stands in the thought; nothing else is shown while it is typed, and the thought waits."""
    person = at_terminal(*RECITE, "one", TURN)
    person.sees("thought9")
    person.press("h")
    person.sees("hint: ")
    person.press("try fivX")
    person.press("\x7fe")
    person.sees("hint: try five")
    last = person.last_thought
    time.sleep(0.7)
    person.press("\r")
    person.sees("the hint is in the thought")
    person.sees("try five")
    person.press("a")

    shown = person.stays()
    assert "\ntry five\n" in shown
    assert "hint: " not in shown
    following = shown[shown.index("\ntry five\n") :].split()[2]
    assert int(following.removeprefix("thought")) <= last + 3


def test_escape_gives_a_hint_up(at_terminal: Callable[..., Person]) -> None:
    """Nothing of it is left, and the thought goes on."""
    person = at_terminal(*RECITE, "one", TURN)
    person.sees("thought9")
    person.press("h")
    person.sees("hint: ")
    person.press("never mind")
    last = person.last_thought
    person.press("\x1b")
    person.sees(f"thought{last + 6}")
    person.press("a")

    assert "mind" not in person.stays()


def test_think_more(at_terminal: Callable[..., Person]) -> None:
    """The thought goes on where it would have ended."""
    person = at_terminal(*RECITE, "one", FORTY + END)
    person.sees("t2")
    person.press("m")

    shown = person.stays()
    assert shown.count("t38") == 2
    assert "[the thought will go on once more where it would end]" in shown


def test_the_keys_are_shown(at_terminal: Callable[..., Person]) -> None:
    """A question mark lists them."""
    person = at_terminal(*RECITE, "one", TURN)
    person.sees("thought9")
    person.press("?")
    person.sees("put a hint into the thought")
    person.press("a")

    assert "\n  p, space   pause, and go on\n" in person.stays()


@pytest.mark.parametrize("typed", ["and why is that?\r", "pah!\r", "x", "\x1b[A"])
def test_a_sentence_is_no_key(typed: str, at_terminal: Callable[..., Person]) -> None:
    """The letters of a next question do nothing, and reach nobody; that is told."""
    person = at_terminal(*RECITE, "one", FORTY + END)
    person.sees("t2")
    person.child.delaybeforesend = None
    for letter in [typed] if typed.startswith("\x1b") else typed:
        person.child.send(letter)
        time.sleep(0.02)

    shown = person.stays()
    assert "t39" in shown
    assert "paused" not in shown
    assert ("is not kept; ? shows the keys" in shown) == (typed != "\x1b[A")
    assert shown.endswith("left over: 0")


def test_keys_of_the_thought_are_refused_in_the_answer(at_terminal: Callable[..., Person]) -> None:
    """There is one note, and the answer is whole; a pause works."""
    person = at_terminal(*RECITE, "one", "a thought</think>\\n\\n" + SIXTY)
    person.sees("t2")
    for key in ("a", "m", "h", "p"):
        person.press(key)
    person.sees("paused · p goes on · Ctrl-C stops")
    person.press("p")

    shown = person.stays()
    assert shown.count("[the thought is over; there is nothing to steer]") == 1
    assert "hint" not in shown
    assert "t59" in shown


@pytest.mark.parametrize("before", ["", "p", "h"])
def test_ctrl_c_stops_it_in_any_state(before: str, at_terminal: Callable[..., Person]) -> None:
    """Ctrl-C ends a reply that runs, that is paused, and for which a hint is typed."""
    person = at_terminal(*RECITE, "one", TURN)
    person.sees("thought9")
    if before:
        person.press(before)
        person.sees({"p": "paused", "h": "hint: "}[before])
    person.child.sendintr()

    assert "ended: cancelled\nthreads: 1\nleft over: 0" in person.stays()


def test_the_answer_in_a_file_is_the_answer(at_terminal: Callable[..., Person], tmp_path: Path) -> None:
    """With stdout in a file the keys work, the line below tells of the answer too, and the file has the answer alone."""
    long = "short thought</think>\\n\\n" + FORTY
    person = at_terminal(
        "/bin/sh", "-c", 'out="$1"; shift; "$@" >"$out"', "sh", str(tmp_path / "out"), *RECITE, "one", long
    )
    person.sees("answering · 18 tokens at 20/s")
    person.press("p")
    person.sees("paused")
    person.press("p")
    person.stays()

    assert (tmp_path / "out").read_text(encoding="utf-8") == FORTY + "\n"


def test_quiet_keys(at_terminal: Callable[..., Person]) -> None:
    """With --quiet nothing is shown of the thought, but who presses a key is answered."""
    person = at_terminal(*RECITE, "one", "--quiet", TURN)
    person.sees_keys_taken()
    person.press("p")
    person.sees("paused")
    person.press("a")

    shown = person.stays()
    assert "The answer is four." in shown
    assert "thought1" not in shown
    assert "tokens" not in shown


def test_without_a_terminal_on_stdin_there_are_no_keys(at_terminal: Callable[..., Person]) -> None:
    """Where the text comes through a pipe the terminal is left alone."""
    person = at_terminal("/bin/sh", "-c", 'true | "$@"', "sh", *RECITE, "one", " ".join(f"t{n}" for n in range(20)))
    person.sees("t2")
    person.child.send("p\n")

    assert "t19" in person.stays()


def test_a_next_question_typed_too_early_is_dropped(at_terminal: Callable[..., Person]) -> None:
    """In a chat what is typed while the model writes neither steers it nor becomes a question."""
    person = at_terminal(*RECITE, "chat", TURN, SHORT)
    person.sees(">>>")
    person.press("why?\r")
    person.sees("thought9")
    person.press("and then?\r")
    person.sees("not kept")
    time.sleep(1.2)
    person.press("a")
    person.sees("The answer is four.")
    person.sees(">>>")
    person.press("what else?\r")
    person.sees("no more than that")
    person.sees(">>>")
    person.press("\x04")

    assert "asked: ['why?', 'what else?']\nthreads: 1" in person.stays()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell with job control")
def test_ctrl_z_and_back(environment: dict[str, str], people: list[Person]) -> None:
    """The shell gets a terminal that echoes; brought back, the reply goes on with its keys."""
    environment |= {"TERM": "xterm", "PS1": "ready> "}
    people.append(Person([shutil.which("bash") or "", "--norc", "--noprofile", "-i"], environment))
    shell = people[0]
    shell.sees("ready> ")
    shell.press("stty -a | cksum\r")
    shell.child.expect(r"(\d{4,} \d+)\r\n")
    mode = shell.child.match[1]
    shell.sees("ready> ")
    shell.press(" ".join([*RECITE, "one", f"'{TURN}'"]) + "\r")
    shell.sees("thought9")
    shell.press("\x1a")
    shell.sees("Stopped")
    shell.sees("ready> ")
    shell.press("stty -a | cksum\r")
    shell.sees("stty -a | cksum")  # the shell's own echo
    shell.child.expect(r"(\d{4,} \d+)\r\n")
    assert shell.child.match[1] == mode
    shell.press("fg\r")
    shell.sees("thinking · ")
    shell.press("a")
    shell.sees("The answer is four.")
    shell.sees("ended: stop")
    shell.press("stty -a | cksum\r")
    shell.child.expect(r"(\d{4,} \d+)\r\n")
    assert shell.child.match[1] == mode


def test_a_killed_run_leaves_the_terminal_as_it_was(at_terminal: Callable[..., Person], tiny: Path) -> None:
    """The real command at a real model: it pauses, and SIGTERM ends it in order."""
    person = at_terminal(*COMMAND, "run", str(tiny), "hi", "--max-tokens", "20000", "--temperature", "0")
    person.sees_keys_taken()
    person.press("p")
    person.sees("paused")
    (process,) = _children(person.child.pid)
    os.kill(process, signal.SIGTERM)

    assert person.stays().endswith("left over: 0")


def _thought(last: int) -> str:
    """Return the thought up to a word's number, as ``_run_together`` gives it."""
    return "".join(f"thought{number}" for number in range(last + 1))


def _run_together(text: str) -> str:
    """Return *text* without the breaks that the width of a terminal makes, and without spaces."""
    return "".join(text.split())


def _children(parent: int) -> list[int]:
    done = subprocess.run(["ps", "-A", "-o", "ppid=,pid="], capture_output=True, text=True, check=True)
    pairs = [line.split() for line in done.stdout.splitlines()]
    return [int(child) for of, child in pairs if int(of) == parent]
