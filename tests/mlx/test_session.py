"""Session on tiny models of every architecture: the tokens of mlx-lm, a cache that changes nothing, every ending."""

import contextlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn

from r1mac.engine.control import Control
from r1mac.engine.events import Event, PrefillProgress
from r1mac.engine.generate import Session
from r1mac.engine.load import Engine
from r1mac.engine.request import GenerateRequest, Message, Sampling
from r1mac.engine.tokenizer import TextStream, Tokenizer
from r1mac.errors import DoesNotFit
from tests.checkpoints import CONFIGS
from tests.sessions import QUESTION, finished, request, text

CONTEXT_TOKENS = 400
OTHER_QUESTION = (Message("system", "Be brief."), Message("user", "Name a colour, any colour at all."))


class _Recorder:
    """A tokenizer that writes down every token that a session takes. With *end_ids* it decides what ends an answer."""

    def __init__(self, tokenizer: Tokenizer, *, end_ids: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self.end_ids = frozenset(end_ids)
        self.taken: list[int] = []
        self.encode, self.decode, self.token_id = tokenizer.encode, tokenizer.decode, tokenizer.token_id

    def stream(self) -> Any:
        self.taken = taken = []
        stream: TextStream = self._tokenizer.stream()

        class _Stream:
            finish = staticmethod(stream.finish)

            @staticmethod
            def push(token_id: int) -> str:
                taken.append(token_id)
                return stream.push(token_id)

        return _Stream()


@dataclass
class _Talk:
    """A session and the record of its tokens."""

    engine: Engine
    session: Session
    recorder: _Recorder

    def ask(self, request: GenerateRequest, control: Control | None = None) -> tuple[list[int], list[Event]]:
        """Return the tokens of one answer and its events."""
        events = list(self.session.generate(request, control))
        return list(self.recorder.taken), events

    def prompt_ids(self, messages: tuple[Message, ...]) -> list[int]:
        return self.recorder.encode(self.engine.template.render(messages, think=True).text)


def _talk(
    engine: Engine, *, step: int = 512, context_tokens: int = CONTEXT_TOKENS, end_ids: Iterable[int] = ()
) -> _Talk:
    recorder = _Recorder(engine.tokenizer, end_ids=end_ids)
    session = Session(
        engine.model,
        recorder,  # type: ignore[arg-type]
        engine.template,
        context_tokens=context_tokens,
        prefill_step_tokens=step,
    )
    return _Talk(engine, session, recorder)


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_tokens_are_mlx_lms(
    kind: str, bits: int, folders: Callable[[str, int], Path], engines: Callable[..., Engine]
) -> None:
    """For the same prompt and weights a session takes the tokens that mlx-lm's own loop takes."""
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(folders(kind, bits))
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    talk = _talk(engines(kind, bits))
    prompt = mx.array(talk.prompt_ids(QUESTION))
    theirs = [int(token) for token, _ in generate_step(prompt, model, max_tokens=24)]

    ours, _ = talk.ask(request(max_tokens=24))

    assert ours == theirs
    assert len(set(ours)) > 3  # not a model that says one thing for ever


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_engine_gives_working_sessions(kind: str, engines: Callable[..., Engine]) -> None:
    """Engine.session() starts an empty conversation with the engine's own tokenizer and limits."""
    engine = engines(kind)
    expected, _ = _talk(engine, end_ids=engine.tokenizer.end_ids).ask(request())

    events = list(engine.session().generate(request()))

    assert text(events).startswith(engine.tokenizer.decode(expected).lstrip("\r\n")[:3])
    assert finished(events).stats.cached_tokens == 0


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_second_turn_is_as_in_a_fresh_session(kind: str, engines: Callable[..., Engine]) -> None:
    """What is left in the cache of one turn changes no token of the next, and only what is shared counts as cached."""
    talk = _talk(engines(kind))
    first, events = talk.ask(request())
    turns = (*QUESTION, Message("assistant", text(events, "answer") or "so"), Message("user", "And 3+3?"))
    expected, _ = _talk(engines(kind)).ask(request(turns))

    second, events = talk.ask(request(turns))

    # The last token of a turn that max_tokens ended was never read.
    held = talk.prompt_ids(QUESTION) + first[:-1]
    shared = _common(held, talk.prompt_ids(turns)[:-1])
    assert second == expected
    assert finished(events).stats.cached_tokens == shared
    # The assistant's mark is the last that both prompts have: «<think>\n» follows it only in the open turn.
    assert shared >= len(talk.prompt_ids(QUESTION)) - 2


def _common(left: list[int], right: list[int]) -> int:
    return next(
        (at for at, (one, other) in enumerate(zip(left, right, strict=False)) if one != other),
        min(len(left), len(right)),
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_repeated_question_reads_one_token(kind: str, engines: Callable[..., Engine]) -> None:
    """The same question again is all in the cache but for its last token, whose logits are wanted."""
    talk = _talk(engines(kind))
    first, events = talk.ask(request())
    prompt_tokens = len(talk.prompt_ids(QUESTION))

    second, again = talk.ask(request())

    assert second == first
    assert finished(events).stats.cached_tokens == 0
    assert finished(again).stats.cached_tokens == prompt_tokens - 1
    progress = [event for event in again if isinstance(event, PrefillProgress)]
    assert [(event.done_tokens, event.cached_tokens) for event in progress] == [(prompt_tokens, prompt_tokens - 1)]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("step", [1, 7])
def test_prefill_steps_change_no_token(kind: str, step: int, engines: Callable[..., Engine]) -> None:
    """A prompt read in steps of 1 or 7 tokens is continued as one that is read at once, and the steps are told."""
    expected, _ = _talk(engines(kind)).ask(request())
    talk = _talk(engines(kind), step=step)
    total = len(talk.prompt_ids(QUESTION))

    tokens, events = talk.ask(request())

    done = [event.done_tokens for event in events if isinstance(event, PrefillProgress)]
    assert tokens == expected
    assert done == [*range(step, total - 1, step), total - 1, total]
    assert all(event.total_tokens == total for event in events if isinstance(event, PrefillProgress))


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 17])
def test_max_tokens_is_exact(max_tokens: int, engines: Callable[..., Engine]) -> None:
    """As many tokens as were allowed are written, and no other than of a longer answer."""
    longer, _ = _talk(engines()).ask(request(max_tokens=30))

    tokens, events = _talk(engines()).ask(request(max_tokens=max_tokens))

    assert tokens == longer[:max_tokens]
    assert finished(events).reason == "length"
    assert finished(events).stats.generated_tokens == max_tokens


@pytest.mark.parametrize(
    ("max_tokens", "count", "reason"), [(100, 5, "context"), (6, 5, "context"), (5, 5, "length"), (4, 4, "length")]
)
def test_the_planned_context_ends_an_answer(
    max_tokens: int, count: int, reason: str, engines: Callable[..., Engine]
) -> None:
    """An answer ends where the context that memory was planned for is full, and says so."""
    talk = _talk(engines())
    talk = _talk(engines(), context_tokens=len(talk.prompt_ids(QUESTION)) + 5)

    tokens, events = talk.ask(request(max_tokens=max_tokens))

    assert len(tokens) == count
    assert finished(events).reason == reason


@pytest.mark.parametrize("room", [0, -1, -10])
def test_a_prompt_beyond_the_context_is_refused(room: int, engines: Callable[..., Engine]) -> None:
    """A prompt that leaves no room for a token is DoesNotFit with both numbers, and the session goes on."""
    length = len(_talk(engines()).prompt_ids(QUESTION))
    talk = _talk(engines(), context_tokens=length + room)

    with pytest.raises(DoesNotFit, match=f"has {length} tokens and memory is planned for {length + room}") as caught:
        talk.ask(request())

    short = (Message("user", "Hi"),)
    assert caught.value.hint
    assert talk.ask(request(short, max_tokens=1))[0] == _talk(engines()).ask(request(short, max_tokens=1))[0]


@pytest.mark.parametrize("position", [0, 4, 19])
def test_an_end_token_stops_and_is_not_shown(position: int, engines: Callable[..., Engine]) -> None:
    """The answer ends before the first end token, which is counted but not part of the text."""
    longer, _ = _talk(engines()).ask(request())
    end = longer[position]
    talk = _talk(engines(), end_ids=[end])

    tokens, events = talk.ask(request())

    assert tokens == longer[: longer.index(end)]
    assert finished(events).reason == "stop"
    assert finished(events).stats.generated_tokens == longer.index(end) + 1
    # What was read ahead of the end is in the cache, and does no harm.
    assert talk.ask(request(OTHER_QUESTION))[0] == _until(end, _talk(engines()).ask(request(OTHER_QUESTION))[0])


def _until(end: int, tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
def test_cancelling_in_prefill(kind: str, engines: Callable[..., Engine]) -> None:
    """A cancelled prefill ends after the step at work; what was read is used by the next request."""
    talk, control = _talk(engines(kind), step=7), Control()
    control.cancel()
    expected, _ = _talk(engines(kind)).ask(request())

    _, events = talk.ask(request(), control)

    assert [event.done_tokens for event in events if isinstance(event, PrefillProgress)] == [7]
    assert finished(events).reason == "cancelled"
    assert finished(events).stats.generated_tokens == 0
    tokens, events = talk.ask(request())
    assert tokens == expected
    assert finished(events).stats.cached_tokens == 7


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
@pytest.mark.parametrize("after", [1, 6])
def test_cancelling_in_decode(kind: str, after: int, engines: Callable[..., Engine]) -> None:
    """A cancelled answer ends with the token at work, and the session goes on with right tokens."""
    talk, control = _talk(engines(kind)), Control()
    expected, _ = _talk(engines(kind)).ask(request())
    other, _ = _talk(engines(kind)).ask(request(OTHER_QUESTION))
    events = []

    for event in talk.session.generate(request(), control):
        events.append(event)
        if len(talk.recorder.taken) >= after:
            control.cancel()

    written = finished(events).stats.generated_tokens
    assert finished(events).reason == "cancelled"
    assert talk.recorder.taken == expected[:written]
    assert after <= written < len(expected)  # more than *after* where a token has no text, and so no event
    assert talk.ask(request())[0] == expected
    assert talk.ask(request(OTHER_QUESTION))[0] == other


def test_cancelling_from_another_thread(engines: Callable[..., Engine]) -> None:
    """Control may be used by any thread while another one generates."""
    talk, control = _talk(engines(), context_tokens=4000), Control()
    thread = threading.Timer(0.1, control.cancel)
    thread.start()

    _, events = talk.ask(request(max_tokens=3500), control)

    thread.join()
    assert finished(events).reason == "cancelled"
    assert finished(events).stats.generated_tokens < 3500


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("how", ["close", "throw", "drop"])
def test_closing_in_the_middle(kind: str, count: int, how: str, engines: Callable[..., Engine]) -> None:
    """A generation that is closed, interrupted or dropped after any event leaves a session that answers rightly."""
    talk = _talk(engines(kind), step=20)
    expected, _ = _talk(engines(kind)).ask(request())

    events = talk.session.generate(request(OTHER_QUESTION))
    for _ in range(count):
        next(events)
    if how == "close":
        events.close()  # type: ignore[attr-defined]
    elif how == "throw":
        with pytest.raises(KeyboardInterrupt):
            events.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    del events

    assert talk.ask(request())[0] == expected


class _Watched:
    """A model that counts the tokens it reads, and raises KeyboardInterrupt at the end of call number *fails_at*."""

    def __init__(self, model: nn.Module, *, fails_at: int | None = None) -> None:
        self.layers = model.layers
        self.read_tokens = 0
        self._model, self._calls, self._fails_at = model, 0, fails_at

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        logits = self._model(tokens, cache=cache)
        self.read_tokens += tokens.shape[1]
        self._calls += 1
        if self._calls == self._fails_at:
            raise KeyboardInterrupt
        return logits


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4, 8])
def test_an_interruption_inside_a_step(fails_at: int, engines: Callable[..., Engine]) -> None:
    """Where a step broke off, cache and token list may disagree; the session does not build on them."""
    expected, _ = _talk(engines()).ask(request())
    model = _Watched(engines().model, fails_at=fails_at)
    talk = _talk(replace(engines(), model=model), step=20)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        talk.ask(request())

    tokens, events = talk.ask(request())
    assert tokens == expected
    assert finished(events).stats.cached_tokens == 0


@pytest.mark.parametrize("max_tokens", [1, 2, 9])
def test_no_token_is_computed_for_nothing(max_tokens: int, engines: Callable[..., Engine]) -> None:
    """A whole answer reads the prompt once and each of its tokens but the last."""
    model = _Watched(engines().model)
    talk = _talk(replace(engines(), model=model))  # type: ignore[arg-type]

    talk.ask(request(max_tokens=max_tokens))

    assert model.read_tokens == len(talk.prompt_ids(QUESTION)) + max_tokens - 1


def test_statistics_add_up(engines: Callable[..., Engine]) -> None:
    """The counts are those of the tokens, the times those of the clock, and the rates their quotients."""
    import time

    talk = _talk(engines())
    started = time.perf_counter()

    tokens, events = talk.ask(request(max_tokens=9))

    stats = finished(events).stats
    assert stats.prompt_tokens == len(talk.prompt_ids(QUESTION))
    assert stats.generated_tokens == len(tokens) == 9
    assert 0 <= stats.think_tokens <= 9
    assert stats.prefill_seconds > 0
    assert stats.decode_seconds > 0
    assert stats.prefill_seconds + stats.decode_seconds < time.perf_counter() - started
    assert stats.prefill_tokens_per_s == pytest.approx(stats.prompt_tokens / stats.prefill_seconds)
    assert stats.decode_tokens_per_s == pytest.approx(8 / stats.decode_seconds)
    assert stats.peak_bytes > 0


def test_a_seed_repeats_an_answer(engines: Callable[..., Engine]) -> None:
    """A seeded answer is the same in a fresh session and in one that has answered other things before."""
    seeded = request(sampling=Sampling(temperature=1.0, top_p=0.95, seed=5))
    expected, _ = _talk(engines()).ask(seeded)
    talk = _talk(engines())
    talk.ask(request(OTHER_QUESTION, sampling=Sampling(temperature=1.0)))
    mx.random.seed(99)

    repeated, _ = talk.ask(seeded)

    other, _ = talk.ask(replace(seeded, sampling=replace(seeded.sampling, seed=6)))
    assert repeated == expected
    assert other != expected


def test_two_sessions_of_one_model_do_not_mix(engines: Callable[..., Engine]) -> None:
    """Two conversations that are continued in turns have each the tokens that they would have alone."""
    requests = [request(), request(OTHER_QUESTION)]
    expected = [_talk(engines()).ask(request)[0] for request in requests]
    talks = [_talk(engines()) for _ in requests]

    running = [talk.session.generate(request) for talk, request in zip(talks, requests, strict=True)]
    while running:
        for events in list(running):
            with contextlib.suppress(StopIteration):
                next(events)
                continue
            running.remove(events)

    assert [talk.recorder.taken for talk in talks] == expected


class _Reciting(nn.Module):
    """A model without layers or cache that says *ids* whatever it is asked."""

    def __init__(self, ids: list[int], *, prompt_tokens: int) -> None:
        super().__init__()
        self.layers: list[Any] = []
        self._said = iter([0] * (prompt_tokens - 1) + ids + [0] * 9)

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        following = [next(self._said) for _ in range(tokens.shape[1])]
        return mx.eye(400)[mx.array(following)][None]


def _recite(engine: Engine, text: str, **changes: Any) -> list[Event]:
    asked = request(**{"max_tokens": 100, **changes})
    prompt = engine.template.render(asked.messages, think=asked.think)
    model = _Reciting([*engine.tokenizer.encode(text), 1], prompt_tokens=len(engine.tokenizer.encode(prompt.text)))
    session = Session(model, engine.tokenizer, engine.template, context_tokens=400, prefill_step_tokens=16)
    return list(session.generate(asked))


@pytest.mark.parametrize(
    ("said", "thought", "answer", "think_tokens"),
    [
        ("2+2\n</think>\n\nFour é🙂.", "2+2\n", "Four é🙂.", 5),  # 4 bytes and the tag
        ("</think>\n\nFour.", "", "Four.", 1),
        ("2+2 </think>a</think>", "2+2 ", "a</think>", 5),
        ("never", "never", "", 5),
    ],
)
def test_thought_and_answer_are_told_apart(
    said: str, thought: str, answer: str, think_tokens: int, engines: Callable[..., Engine]
) -> None:
    """What a model says is split at its tag, and the thought's tokens are counted with the tag that ends it."""
    events = _recite(engines(), said)

    assert text(events) == thought + answer
    assert text(events, "answer") == answer
    assert finished(events).reason == "stop"
    assert finished(events).stats.think_tokens == think_tokens


def test_without_a_thought_tags_aretext(engines: Callable[..., Engine]) -> None:
    """A request that wants no thought has the whole text as its answer."""
    events = _recite(engines(), "<think>Four.", think=False)

    assert text(events, "answer") == "<think>Four."
    assert finished(events).stats.think_tokens == 0


def test_a_character_cut_off_by_max_tokens(engines: Callable[..., Engine]) -> None:
    """Where max_tokens falls inside a character nothing before it is lost, and a replacement character marks it."""
    events = _recite(engines(), "</think>ab🙂", max_tokens=5)

    assert text(events, "answer").rstrip("�") == "ab"
    assert text(events, "answer") != "ab"
    assert finished(events).reason == "length"


def test_a_long_answer_clears_its_buffers(engines: Callable[..., Engine]) -> None:
    """An answer longer than the interval at which MLX's buffers are freed goes on unchanged."""
    from r1mac.engine import decode

    count = decode.CLEAR_EVERY_TOKENS + 20

    tokens, _ = _talk(engines()).ask(request(max_tokens=count))

    assert len(tokens) == count
    assert tokens[:20] == _talk(engines()).ask(request())[0]
