"""ui.stream: the answer on stdout, all else on stderr, or every event as a line of JSON."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from r1mac.engine.events import (
    ChosenToken,
    Event,
    Finished,
    GenerationStats,
    Notice,
    Pace,
    PrefillProgress,
    TextDelta,
    TokenLogprob,
)
from r1mac.ui import stream


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
    shown = stream.show(_events(), quiet=False, as_json=False)

    out, err = capsys.readouterr()
    assert out == "Four.\n"
    assert (shown.thought, shown.answer, shown.finished.reason) == ("2+2\n", "Four.", "stop")
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
    [
        ("stop", ""),
        ("length", "stopped at --max-tokens"),
        ("context", "context is full (more with --context)"),
        ("memory", "[stopped: memory ran out]"),
        ("cancelled", "[stopped]"),
    ],
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


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("context", "[stopped: the planned context is full; `r1mac run 8b --continue --context N` goes on]"),
        ("memory", "[stopped: memory ran out; `r1mac run 8b --continue` goes on]"),
        ("cancelled", "[stopped]"),
    ],
)
def test_a_reply_that_was_cut_off_names_the_command_that_goes_on(
    reason: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the reply can be taken up again the note has the command."""
    stream.show(_events(reason=reason), quiet=False, as_json=False, go_on="r1mac run 8b --continue")

    assert said in capsys.readouterr().err.splitlines()


LANDED = Notice(kind="landing", text="the context is nearly full; answering now")


def _interrupted(*extra: Event) -> Iterator[Event]:
    yield TextDelta(channel="think", text="2 and")
    yield from extra
    yield TextDelta(channel="think", text=" 2")
    yield TextDelta(channel="answer", text="Four.")
    yield Finished(reason="stop", stats=_stats())


def test_a_notice_stands_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """What r1mac did is told on stderr between the text, which is whole without it; quiet leaves it out."""
    for quiet in (False, True):
        stream.show(_interrupted(LANDED), quiet=quiet, as_json=False)

    out, err = capsys.readouterr()
    assert out == "Four.\nFour.\n"
    assert err.startswith("2 and\n[the context is nearly full; answering now]\n 2\n\nprompt 100")
    assert err.count("nearly full") == 1


def test_pace_is_for_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe there is no line that would be drawn again and again."""
    pace = Pace(written_tokens=5, think_tokens=5, tokens_per_s=10.0, left_tokens=100)
    stream.show(_interrupted(pace), quiet=False, as_json=False)

    assert capsys.readouterr().err.startswith("2 and 2\n\nprompt")


@pytest.mark.parametrize(
    ("tokens_per_s", "left_tokens", "thinking", "keys", "line"),
    [
        (18.04, 3240, True, True, "thinking · 1,204 tokens at 18/s · ≤ 3 min left · a answer · p pause · ? keys"),
        (2.5, 20_000, True, False, "thinking · 1,204 tokens at 2.5/s · ≤ 2 h 10 min left"),
        (18.0, 100, False, True, "answering · 96 tokens at 18/s · ≤ 6 s left · p pause · ? keys"),
        (None, 100, True, True, "thinking · 1,204 tokens · a answer · p pause · ? keys"),
    ],
)
def test_pace_line(tokens_per_s: float | None, left_tokens: int, thinking: bool, keys: bool, line: str) -> None:
    """The line has the part's own tokens, the pace, the most that is left, and the keys that do something."""
    pace = Pace(written_tokens=1300, think_tokens=1204, tokens_per_s=tokens_per_s, left_tokens=left_tokens)

    assert stream.format_pace(pace, thinking=thinking, keys=keys) == line


def test_the_last_json_line_has_all_that_happened(capsys: pytest.CaptureFixture[str]) -> None:
    """Notices, probabilities and seed stand together in the last object; a notice is also told at once."""
    two = TokenLogprob(7, " 2", -0.5)
    token = ChosenToken(channel="think", chosen=two, likeliest=(two, TokenLogprob(8, " 3", -1.5)))
    stream.show(_interrupted(LANDED, token), quiet=False, as_json=True, seed=3)

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    notice = {"kind": "landing", "text": "the context is nearly full; answering now"}
    assert [line["event"] for line in lines] == ["text_delta", "notice", "text_delta", "text_delta", "finished"]
    assert lines[1] == {"event": "notice", **notice}
    assert lines[-1]["notices"] == [notice]
    assert lines[-1]["seed"] == 3
    assert lines[-1]["logprobs"] == [
        {
            "channel": "think",
            "chosen": {"token_id": 7, "text": " 2", "logprob": -0.5},
            "likeliest": [
                {"token_id": 7, "text": " 2", "logprob": -0.5},
                {"token_id": 8, "text": " 3", "logprob": -1.5},
            ],
        }
    ]


def test_json_without_probabilities_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Who did not ask for probabilities gets no empty list of them."""
    stream.show(_events(), quiet=False, as_json=True)

    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["seed"], last["notices"]) == (None, [])
    assert "logprobs" not in last


@pytest.mark.parametrize("quiet", [True, False])
def test_json_lines_are_the_events(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Every event is one JSON object on one line of stdout, with its kind and all its fields; stderr stays empty."""
    answer = stream.show(_events(answer='a "b"\n\u2028é🙂'), quiet=quiet, as_json=True).answer

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
    assert lines[-1]["stats"] == asdict(_stats())


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
    monkeypatch.setenv("TERM", "xterm")

    stream.show(_events(prompt_tokens=prompt_tokens), quiet=quiet, as_json=False)

    out, err = capsys.readouterr()
    assert out == "Four.\n"
    assert ("reading the prompt: 2500 of 5000 tokens" in err) == shown
    assert ("\r\x1b[J" in err) == shown


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


def test_a_generation_without_an_end_is_a_bug() -> None:
    """Events that stop without Finished are reported, not taken for an answer."""
    with pytest.raises(AssertionError, match="without Finished"):
        stream.show(iter([TextDelta(channel="answer", text="x")]), quiet=True, as_json=False)
