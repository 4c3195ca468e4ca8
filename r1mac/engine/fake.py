"""An engine that recites: for tests, and for looking at the terminal and the server without a model."""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Literal

from r1mac.engine.control import Control
from r1mac.engine.events import Event, Finished, GenerationStats, PrefillProgress
from r1mac.engine.request import GenerateRequest
from r1mac.engine.think import ThinkSplitter

_WORD = re.compile(r"\s*\S+\s*$|\s*\S+|\s+")


class RecitingSession:
    """A Session whose answers are known beforehand, without mlx. One word counts as one token, and takes no time.

    Each of *answers* is the text of a whole model's turn, thought and tags included, or an error that the turn
    raises; they are said in order. *requests* keeps what was asked.
    """

    def __init__(self, answers: Iterable[str | Exception], *, in_thought: bool = True) -> None:
        self.requests: list[GenerateRequest] = []
        self._answers = deque(answers)
        self._in_thought = in_thought

    def generate(self, request: GenerateRequest, control: Control | None = None) -> Iterator[Event]:
        """Yield the next answer as events; the last is Finished."""
        self.requests.append(request)
        answer = self._answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        control = control or Control()
        in_thought = self._in_thought and request.think
        splitter = ThinkSplitter(in_thought=in_thought, can_open=request.think)
        prompt_tokens = max(sum(len(message.text.split()) for message in request.messages), 1)
        yield PrefillProgress(done_tokens=prompt_tokens, total_tokens=prompt_tokens, cached_tokens=0)
        reason: Literal["stop", "length", "cancelled"] = "stop"
        generated_tokens = think_tokens = 0
        for word in _WORD.findall(answer):
            if generated_tokens == request.max_tokens:
                reason = "length"
                break
            generated_tokens += 1
            think_tokens += splitter.channel == "think"
            yield from splitter.feed(word)
            if control.cancelled:
                reason = "cancelled"
                break
        yield from splitter.finish()
        yield Finished(
            reason=reason,
            stats=GenerationStats(
                prompt_tokens=prompt_tokens,
                cached_tokens=0,
                generated_tokens=generated_tokens,
                think_tokens=think_tokens,
                prefill_seconds=0.0,
                decode_seconds=0.0,
                prefill_peak_bytes=0,
                peak_bytes=0,
            ),
        )
