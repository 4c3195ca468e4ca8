"""Sessions on models that say what a script wants, and the events that they yield taken apart."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from r1mac.engine.events import Event, Finished, Notice, TextDelta
from r1mac.engine.generate import Session
from r1mac.engine.load import Engine, load_engine
from r1mac.engine.request import GenerateRequest, Message, Sampling
from r1mac.plan.compute import Compute
from tests.generators import value_of

GREEDY = Sampling(temperature=0)
QUESTION = (Message("user", "What is 2+2? é🙂"),)


class ScriptedModel(nn.Module):
    """A model whose next token is a function of all tokens before it, which it keeps in the cache like any other.

    *script* takes the tokens from the beginning of the conversation and returns the next one.
    """

    def __init__(self, script: Callable[[list[int]], int], *, vocabulary: int = 400) -> None:
        super().__init__()
        self.layers: list[Any] = [nn.Identity()]
        self._script, self._vocabulary = script, vocabulary

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        rows, count = tokens.shape
        values = mx.broadcast_to(tokens[:, None, :, None].astype(mx.float32), (rows, 1, count, 64))
        keys, _ = cache[0].update_and_fetch(values, values)
        padding = [int(value) for value in getattr(cache[0], "left_padding", mx.zeros(rows)).tolist()]  # type: ignore[arg-type, union-attr]
        return mx.stack([self._row(keys[row, 0, padding[row] :, 0], count) for row in range(rows)])

    def _row(self, read: mx.array, count: int) -> mx.array:
        ids = [int(value) for value in read.tolist()]  # type: ignore[arg-type, union-attr]
        following = [self._script(ids[: len(ids) - count + at + 1]) for at in range(count)]
        return 20 * mx.eye(self._vocabulary)[mx.array(following)]


def thinker(encode: Callable[[str], list[int]], thought: str, answer: str, *, end_id: int = 1) -> ScriptedModel:
    """Return a model that thinks *thought* over and over until «</think>» is there, and then says *answer*.

    A thought that holds «</think>» itself ends there. The tokenizer is that of ``write_tokenizer``.
    """
    (open_id,), (close_id,), (newline_id,) = map(encode, ("<think>", "</think>", "\n"))
    thought_ids, answer_ids = encode(thought), [*encode(answer), end_id]

    def script(ids: list[int]) -> int:
        if open_id not in ids:
            return end_id  # the prompt is still being read
        reply = ids[len(ids) - ids[::-1].index(open_id) + 1 :]  # after «<think>\\n»
        if close_id not in reply:
            return thought_ids[len(reply) % len(thought_ids)]
        said = reply[reply.index(close_id) + 1 :]
        while said and said[0] == newline_id:
            said = said[1:]
        return answer_ids[min(len(said), len(answer_ids) - 1)]

    return ScriptedModel(script)


def session_of(
    model: nn.Module, engine: Engine, *, context_tokens: int = 4000, prefill_step_tokens: int = 64, **options: Any
) -> Session:
    """Return a session of *model* with the tokenizer and the template of *engine*."""
    return Session(
        model,
        engine.tokenizer,
        engine.template,
        context_tokens=context_tokens,
        prefill_step_tokens=prefill_step_tokens,
        **options,
    )


def load(folder: Path, **options: Any) -> Engine:
    """Return the engine of the model in *folder*, in float32."""
    options = {"compute": Compute.FLOAT32, "context_tokens": 400, "prefill_step_tokens": 512, **options}
    return value_of(load_engine(folder, **options))


def request(messages: tuple[Message, ...] = QUESTION, **changes: Any) -> GenerateRequest:
    """Return a greedy request for a few tokens."""
    return GenerateRequest(**{"messages": messages, "max_tokens": 20, "sampling": GREEDY, **changes})


def finished(events: list[Event]) -> Finished:
    """Return the last event, which alone is Finished."""
    assert isinstance(events[-1], Finished)
    assert not any(isinstance(event, Finished) for event in events[:-1])
    return events[-1]


def text(events: Iterable[Event], channel: str | None = None) -> str:
    """Return the text of the events, of one channel or of both."""
    return "".join(e.text for e in events if isinstance(e, TextDelta) and channel in {None, e.channel})


def notices(events: Iterable[Event]) -> list[tuple[str, str]]:
    """Return kind and text of every notice."""
    return [(event.kind, event.text) for event in events if isinstance(event, Notice)]
