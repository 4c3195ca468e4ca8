"""ui.stream: the answer on stdout, all else on stderr, or every event as a line of JSON."""

import json
import sys
from collections.abc import Iterator

import pytest

from r1mac.engine.control import Control
from r1mac.engine.events import Event, Finished, GenerationStats, PrefillProgress, TextDelta
from r1mac.engine.fake import RecitingSession
from r1mac.engine.request import GenerateRequest, Message
from r1mac.ui import stream

REQUEST = GenerateRequest(messages=(Message("user", "2+2?"),), max_tokens=100)


def _stats(**changes: float) -> GenerationStats:
    values = {
        "prompt_tokens": 100,
        "cached_tokens": 0,
        "generated_tokens": 11,
        "think_tokens": 0,
        "prefill_seconds": 2.0,
        "decode_seconds": 5.0,
        "prefill_peak_bytes": 2 * 2**30,
        "peak_bytes": 3 * 2**30,
    }
    return GenerationStats(**{**values, **changes})  # type: ignore[arg-type]


def _events(
    *, thought: str = "2+2\n", answer: str = "Four.", reason: str = "stop", prompt_tokens: int = 4
) -> Iterator[Event]:
    yield PrefillProgress(done_tokens=prompt_tokens // 2, total_tokens=prompt_tokens, cached_tokens=0)
    yield PrefillProgress(done_tokens=prompt_tokens, total_tokens=prompt_tokens, cached_tokens=0)
    for channel, text in (("think", thought), ("answer", answer)):
        for char in text:
            yield TextDelta(channel=channel, text=char)
    yield Finished(reason=reason, stats=_stats())


def test_answer_goes_to_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """stdout has the answer and a final line break, so that a redirected file holds what was asked for."""
    answer, finished = stream.show(_events(), quiet=False, as_json=False)

    out, err = capsys.readouterr()
    assert out == "Four.\n"
    assert answer == "Four."
    assert finished.reason == "stop"
    assert err.startswith("2+2\n\n")
    assert "prompt 100 tokens at 50.0/s · wrote 11 tokens at 2.0/s · 7.0 s · peak 3.0 GiB" in err


@pytest.mark.parametrize(
    ("answer", "out"), [("Four.\n", "Four.\n"), ("", ""), ("é🙂\n\nx", "é🙂\n\nx\n"), ("\n", "\n")]
)
def test_an_answer_ends_with_one_line_break(answer: str, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line break is added only where the answer has none, and never where there is no answer."""
    stream.show(_events(answer=answer), quiet=False, as_json=False)

    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("reason", "said"),
    [("stop", ""), ("length", "stopped at --max-tokens"), ("context", "context is full"), ("cancelled", "[stopped]")],
)
def test_quiet_says_only_what_is_missing(reason: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Quiet shows the answer and, where the model was cut off, why; the person who stopped it knows already."""
    stream.show(_events(reason=reason), quiet=True, as_json=False)

    out, err = capsys.readouterr()
    assert out == "Four.\n"
    assert (said in err) if reason != "cancelled" else (err == "")
    assert "2+2" not in err
    assert "tokens/s" not in err
    assert "GiB" not in err


@pytest.mark.parametrize("reason", ["length", "context", "cancelled"])
def test_an_ending_that_is_not_the_models_is_named(reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without quiet every early ending has a note on stderr."""
    stream.show(_events(reason=reason), quiet=False, as_json=False)

    out, err = capsys.readouterr()
    assert out == "Four.\n"
    assert "[stopped" in err


@pytest.mark.parametrize("quiet", [True, False])
def test_json_lines_are_the_events(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Every event is one JSON object on one line of stdout, with its kind and all its fields; stderr stays empty."""
    answer, _ = stream.show(_events(answer='a "b"\n\u2028é🙂'), quiet=quiet, as_json=True)

    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.removesuffix("\n").split("\n")]
    assert err == ""
    assert [line["event"] for line in lines[:2]] == ["prefill_progress"] * 2
    assert {line["event"] for line in lines[2:-1]} == {"text_delta"}
    texts = {
        channel: "".join(line["text"] for line in lines[2:-1] if line["channel"] == channel)
        for channel in ("think", "answer")
    }
    assert texts == {"think": "2+2\n", "answer": 'a "b"\n\u2028é🙂'}
    assert answer == texts["answer"]
    assert lines[-1]["event"] == "finished"
    assert lines[-1]["reason"] == "stop"
    assert lines[-1]["stats"] == {
        "prompt_tokens": 100,
        "cached_tokens": 0,
        "generated_tokens": 11,
        "think_tokens": 0,
        "prefill_seconds": 2.0,
        "decode_seconds": 5.0,
        "prefill_peak_bytes": 2 * 2**30,
        "peak_bytes": 3 * 2**30,
    }


@pytest.mark.parametrize(
    ("prompt_tokens", "terminal", "quiet", "shown"),
    [(5000, True, False, True), (5000, False, False, False), (5000, True, True, False), (4, True, False, False)],
)
def test_a_long_prompt_shows_its_progress(
    prompt_tokens: int,
    terminal: bool,
    quiet: bool,
    shown: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only a long prompt, only on a terminal, and the line is wiped before the answer begins."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)

    stream.show(_events(prompt_tokens=prompt_tokens), quiet=quiet, as_json=False)

    out, err = capsys.readouterr()
    assert out == "Four.\n"
    assert ("reading the prompt: 2500 of 5000 tokens" in err) == shown
    assert ("\r\x1b[2K" in err) == shown


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"cached_tokens": 60, "think_tokens": 5},
            "prompt 100 tokens at 20.0/s · 60 cached · wrote 11 tokens (5 of thought) at 2.0/s · 7.0 s · peak 3.0 GiB",
        ),
        ({"prefill_seconds": 0.0}, "prompt 100 tokens · wrote 11 tokens at 2.0/s · 5.0 s · peak 3.0 GiB"),
        ({"generated_tokens": 1}, "prompt 100 tokens at 50.0/s · wrote 1 tokens · 7.0 s · peak 3.0 GiB"),
        (
            {"generated_tokens": 0, "decode_seconds": 0.0},
            "prompt 100 tokens at 50.0/s · wrote 0 tokens · 2.0 s · peak 3.0 GiB",
        ),
        ({"cached_tokens": 100}, "prompt 100 tokens · 100 cached · wrote 11 tokens at 2.0/s · 7.0 s · peak 3.0 GiB"),
    ],
)
def test_statistics_line(changes: dict[str, float], line: str) -> None:
    """The line names what was measured; a rate of nothing or of no time is left out."""
    assert stream.format_stats(_stats(**changes)) == line


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("2+2 is\n4</think>\n\nFour. It is.", "2+2 is\n4", "Four. It is."),
        ("no end", "no end", ""),
        ("</think>a  b", "", "a  b"),
    ],
)
def test_what_is_recited_is_what_is_shown(
    text: str, thought: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """RecitingSession says a text as a model would, thought and answer apart, word by word."""
    shown, finished = stream.show(RecitingSession([text]).generate(REQUEST), quiet=False, as_json=False)

    out, err = capsys.readouterr()
    assert shown == out.removesuffix("\n") == answer
    assert err.startswith(thought)
    assert finished.stats.generated_tokens == len(text.split())


def test_a_recital_can_be_limited_and_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    """RecitingSession keeps to max_tokens and to Control as a real session does."""
    session, control = RecitingSession(["a b c d", "a b c d"], in_thought=False), Control()
    control.cancel()
    limited = stream.show(
        session.generate(GenerateRequest(messages=REQUEST.messages, max_tokens=2)), quiet=True, as_json=False
    )
    stopped = stream.show(session.generate(REQUEST, control), quiet=True, as_json=False)

    assert (limited[0], limited[1].reason) == ("a b", "length")
    assert (stopped[0], stopped[1].reason) == ("a", "cancelled")
    assert [request.max_tokens for request in session.requests] == [2, 100]


def test_a_generation_without_an_end_is_a_bug() -> None:
    """Events that stop without Finished are reported, not taken for an answer."""
    with pytest.raises(AssertionError, match="without Finished"):
        stream.show(iter([TextDelta(channel="answer", text="x")]), quiet=True, as_json=False)
