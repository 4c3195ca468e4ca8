"""Conversations that go on: the next day, after kill -9 in mid-thought, and in spite of damaged files."""

import contextlib
import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import CONFIGS, write_checkpoint
from tests.cli.conftest import COMMAND, ROOT, R1mac

# Random weights loop at once when they are greedy, and never at this temperature; nor do they end by themselves.
ASKED = ("hi", "--seed", "7", "--temperature", "1.3", "--top-p", "1", "--json", "--logit-bias", "1=-100")


def _events(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def _text(output: str) -> str:
    return "".join(event["text"] for event in _events(output) if event["event"] == "text_delta")


def _last(output: str) -> dict[str, Any]:
    return _events(output)[-1]


def _chats(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "r1mac-home" / "chats").iterdir())


@contextlib.contextmanager
def _running(arguments: tuple[str, ...], environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run r1mac in the background; it does not outlive the block.

    Nothing between it and the test holds more than 60 pieces of text (on Linux), so that it does not run ahead.
    """
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        pipesize=4096,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait_for_text(process: "subprocess.Popen[bytes]", count: int) -> str:
    """Wait until so many pieces of text came, and return what was written."""
    assert process.stdout is not None
    lines: list[bytes] = []
    while sum(b'"text_delta"' in line for line in lines) < count:
        line = process.stdout.readline()
        assert line, "the process ended by itself"
        lines.append(line)
    return b"".join(lines).decode()


def _killed(arguments: tuple[str, ...], environment: dict[str, str], *, after_texts: int) -> str:
    """Run r1mac until it has written so much, kill it as a crash would, and return what it wrote."""
    with _running(arguments, environment) as process:
        written = _wait_for_text(process, after_texts)
        process.send_signal(signal.SIGKILL)
        assert process.stdout is not None
        rest = process.stdout.read()
    return written + rest[: rest.rfind(b"\n") + 1].decode()


@pytest.fixture(scope="module", name="whole")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what a reply is that nobody kills."""
    folder = tmp_path_factory.mktemp("whole")
    tiny = write_checkpoint(folder / "tiny", CONFIGS["llama"])
    done = subprocess.run(
        [*COMMAND, "run", str(tiny), *ASKED, "--max-tokens", "500"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "R1MAC_HOME": str(folder / "home")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("after_texts", [1, 80])
def test_a_killed_thought_goes_on_with_the_same_text(
    after_texts: int, whole: str, r1mac: R1mac, environment: dict[str, str], tiny: Path
) -> None:
    """After kill -9 the same command with --continue finishes the reply, and the seed's text is as without the kill."""
    written = _text(_killed(("run", str(tiny), *ASKED, "--max-tokens", "500"), environment, after_texts=after_texts))

    resumed = r1mac("run", str(tiny), "--continue", "--json")

    assert resumed.returncode == 0, resumed.stderr
    assert _text(resumed.stdout) == _text(whole)
    assert _text(resumed.stdout).startswith(written)
    stats = _last(resumed.stdout)["stats"]
    assert stats["generated_tokens"] == _last(whole)["stats"]["generated_tokens"] == 500
    # A text is a token at least, and every 64 of them go to the disk.
    assert after_texts - 64 <= stats["earlier_tokens"] <= 500


def test_what_was_read_is_not_read_again(r1mac: R1mac, environment: dict[str, str], tiny: Path) -> None:
    """A reply that goes on takes what the model had read from the disk."""
    long = ("x" * 700, *ASKED[1:], "--max-tokens", "1400")
    _killed(("run", str(tiny), *long), environment, after_texts=560)

    resumed = r1mac("run", str(tiny), "--continue", "--json")

    first = next(event for event in _events(resumed.stdout) if event["event"] == "prefill_progress")
    assert first["cached_tokens"] >= 700 + 700


def test_a_conversation_goes_on_the_next_day(r1mac: R1mac, tiny: Path, tmp_path: Path) -> None:
    """The next question is asked after all that was said, with the system prompt, and the prompt is not read anew."""
    r1mac("run", str(tiny), "x" * 600, "--max-tokens", "5", "--system", "Be kind.", "--seed", "1")

    second = r1mac("run", str(tiny), "And then?", "--continue", "--max-tokens", "5", "--json")

    assert second.returncode == 0, second.stderr
    (chat,) = _chats(tmp_path)
    record = json.loads((chat / "chat.json").read_text(encoding="utf-8"))
    assert [message["role"] for message in record["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert record["messages"][3]["text"] == "And then?"
    progress = next(event for event in _events(second.stdout) if event["event"] == "prefill_progress")
    assert progress["cached_tokens"] >= 600
    assert progress["total_tokens"] > 610


def test_nothing_to_go_on_with_is_said(r1mac: R1mac, tiny: Path) -> None:
    """Without an earlier chat, or a prompt for one that is whole, there is one sentence and what would help."""
    none = r1mac("run", str(tiny), "hello", "--continue")
    r1mac("run", str(tiny), "hi", "--max-tokens", "3")
    whole = r1mac("run", str(tiny), "--continue")

    assert none.returncode == 20
    assert "there is no chat" in none.stderr
    assert whole.returncode == 2
    assert "say a PROMPT" in whole.stderr


def test_a_cancelled_reply_goes_on(r1mac: R1mac, environment: dict[str, str], tiny: Path) -> None:
    """Ctrl-C in mid-thought keeps the reply; --continue finishes it."""
    with _running(("run", str(tiny), *ASKED, "--max-tokens", "300"), environment) as process:
        _wait_for_text(process, 1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130

    resumed = r1mac("run", str(tiny), "--continue", "--json")

    assert _last(resumed.stdout)["reason"] == "length"
    assert _last(resumed.stdout)["stats"]["generated_tokens"] == 300


def test_damage_costs_no_more_than_time(r1mac: R1mac, environment: dict[str, str], tiny: Path, tmp_path: Path) -> None:
    """With every block of the prompt cache damaged and the journal's end torn off, the reply is still finished rightly."""
    whole = r1mac("run", str(tiny), "x" * 600, *ASKED[1:], "--max-tokens", "300")
    _killed(("run", str(tiny), "x" * 600, *ASKED[1:], "--max-tokens", "300"), environment, after_texts=40)
    for block in (tmp_path / "r1mac-home" / "prompt-cache").iterdir():
        data = bytearray(block.read_bytes())
        data[-1] ^= 1
        block.write_bytes(data)
    journal = _chats(tmp_path)[-1] / "reply.journal"
    os.truncate(journal, journal.stat().st_size - 3)

    resumed = r1mac("run", str(tiny), "--continue", "--json")

    assert resumed.returncode == 0, resumed.stderr
    assert _text(resumed.stdout) == _text(whole.stdout)


def test_chats_are_for_this_user_alone_and_can_be_left_out(r1mac: R1mac, tiny: Path, tmp_path: Path) -> None:
    """Files are private; with save_chats = false nothing is kept."""
    r1mac("run", str(tiny), "hi", "--max-tokens", "3")
    (chat,) = _chats(tmp_path)
    assert stat.S_IMODE(chat.stat().st_mode) == 0o700
    assert stat.S_IMODE((chat / "chat.json").stat().st_mode) == 0o600
    assert not (chat / "reply.journal").exists()

    (tmp_path / "r1mac-home" / "config.toml").write_text("save_chats = false\n", encoding="utf-8")
    r1mac("run", str(tiny), "hi", "--max-tokens", "3")

    assert _chats(tmp_path) == [chat]


def test_one_chat_is_not_continued_twice_at_once(r1mac: R1mac, environment: dict[str, str], tiny: Path) -> None:
    """While a process talks in the last chat, another one is told so."""
    asked = ("run", str(tiny), *ASKED, "--max-tokens", "20000", "--context", "4096")
    with _running(asked, environment) as process:
        _wait_for_text(process, 1)
        second = r1mac("run", str(tiny), "hello", "--continue")

    assert second.returncode == 15
    assert "open in another r1mac" in second.stderr
