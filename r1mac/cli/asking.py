"""What to ask: the prompt of the command line, what comes through a pipe, or both."""

import os
import stat
import sys

import click

_SILENCE_SECONDS, _PATIENCE_SECONDS = 1.0, 15.0


def prompt_text(prompt: str | None, *, may_lack: bool = False) -> str | None:
    """Return what to ask: the argument, what comes through a pipe or a file, or both; None for a chat.

    With *may_lack* None is also returned where there is no terminal and nothing comes.
    """
    piped = _piped_text(must_come=prompt == "-" or (prompt is None and not may_lack))
    text = piped if prompt in {None, "-"} else prompt
    if text is not None and not text.strip():
        if may_lack and prompt is None:
            return None
        raise click.UsageError("There is no prompt: it is empty.")
    if prompt not in {None, "-"} and piped and piped.strip():
        text = f"{prompt}\n\n{piped}"
    # An argument that is not UTF-8 reaches Python as lone surrogates, which no tokenizer takes.
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if text is not None else None


def _piped_text(*, must_come: bool) -> str | None:
    """Return the text on standard input, or None where it is a terminal or nothing.

    A program may have started r1mac with a pipe that nobody writes to: unless the text *must_come*, one that
    stays silent is waited for only so long, and never dropped without a word.
    """
    if sys.stdin.isatty():
        return None
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not must_come:
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            return None
        if stat.S_ISFIFO(mode) and not _begins_in_time():
            return None
    return sys.stdin.buffer.read().decode("utf-8", "replace")


def _begins_in_time() -> bool:
    """Wait for the first byte on standard input and tell whether it came."""
    import select

    from r1mac.ui import console

    if select.select([sys.stdin], [], [], _SILENCE_SECONDS)[0]:
        return True
    console.note("waiting for the text on standard input …")
    if select.select([sys.stdin], [], [], _PATIENCE_SECONDS)[0]:
        return True
    console.note(f"nothing came in {_PATIENCE_SECONDS:.0f} s; answering the prompt alone")
    return False
