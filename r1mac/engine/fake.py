"""An engine that recites: for tests, and for looking at the terminal and the server without a model."""

import re
import time
from collections import deque
from collections.abc import Iterable, Iterator

from r1mac.engine.control import Control, Wish
from r1mac.engine.events import Event, Finished, FinishReason, GenerationStats, Notice, Pace, PrefillProgress
from r1mac.engine.request import GenerateRequest
from r1mac.engine.think import THINK_END, ThinkSplitter

_WORD = re.compile(r"\s*\S+\s*$|\s*\S+|\s+")
_LOOK_SECONDS = 0.05


class RecitingSession:
    """A Session whose answers are known beforehand, without mlx. One word counts as one token.

    Each of *answers* is the text of a whole model's turn, thought and tags included, or an error that the turn
    raises; they are said in order. *requests* keeps what was asked. Words take no time, or come at *words_per_s*,
    with a Pace each second. Control works as on a real session: a thought that is to be cut short goes on with
    what stands behind its end, one that is to be longer says once more what it said.
    """

    def __init__(
        self, answers: Iterable[str | Exception], *, in_thought: bool = True, words_per_s: float | None = None
    ) -> None:
        self.requests: list[GenerateRequest] = []
        self._answers = deque(answers)
        self._in_thought = in_thought
        self._words_per_s = words_per_s

    def generate(self, request: GenerateRequest, control: Control | None = None) -> Iterator[Event]:
        """Yield the next answer as events; the last is Finished."""
        self.requests.append(request)
        answer = self._answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        in_thought = self._in_thought and request.think and request.raw_prompt is None
        yield from _Recital(answer, request, control or Control(), self._words_per_s, in_thought=in_thought).events()


class _Recital:
    """One answer while it is said."""

    def __init__(
        self, answer: str, request: GenerateRequest, control: Control, words_per_s: float | None, *, in_thought: bool
    ) -> None:
        self._words = deque(_WORD.findall(answer))
        self._request = request
        self._control = control
        self._words_per_s = words_per_s
        self._splitter = ThinkSplitter(in_thought=in_thought, can_open=request.think)
        self._said: list[str] = []
        self._think_tokens = 0
        self._more = 0

    def events(self) -> Iterator[Event]:
        prompt_tokens = max(sum(len(message.text.split()) for message in self._request.messages), 1)
        yield PrefillProgress(done_tokens=prompt_tokens, total_tokens=prompt_tokens, cached_tokens=0)
        started = time.perf_counter()
        reason: FinishReason = "stop"
        while self._words:
            if len(self._said) == self._request.max_tokens:
                reason = "length"
                break
            yield from self._say(self._words.popleft())
            if self._control.cancelled:
                reason = "cancelled"
                break
            yield from self._pause()
            yield from self._steer()
        yield from self._splitter.finish()
        yield Finished(
            reason=reason,
            stats=GenerationStats(
                prompt_tokens=prompt_tokens,
                cached_tokens=0,
                generated_tokens=len(self._said),
                think_tokens=self._think_tokens,
                prefill_seconds=0.0,
                decode_seconds=time.perf_counter() - started if self._words_per_s else 0.0,
                prefill_peak_bytes=0,
                peak_bytes=0,
            ),
        )

    def _say(self, word: str) -> Iterator[Event]:
        if self._more and THINK_END in word and self._splitter.channel == "think":
            self._more -= 1
            head, _, tail = word.partition(THINK_END)
            self._words.extendleft(reversed([*self._said, head, THINK_END + tail]))
            word = f"{head} Wait."
        self._said.append(word)
        self._think_tokens += self._splitter.channel == "think"
        if self._words_per_s:
            time.sleep(1 / self._words_per_s)
            if len(self._said) % max(round(self._words_per_s), 1) == 0:
                yield Pace(
                    written_tokens=len(self._said),
                    think_tokens=self._think_tokens,
                    tokens_per_s=self._words_per_s,
                    left_tokens=self._request.max_tokens - len(self._said),
                )
        yield from self._splitter.feed(word)

    def _pause(self) -> Iterator[Event]:
        if not self._control.paused:
            return
        yield Notice(kind="pause", text="paused")
        while not self._control.wait(_LOOK_SECONDS):
            pass
        yield Notice(kind="pause", text="going on")

    def _steer(self) -> Iterator[Event]:
        wish = self._control.take()
        if wish is None:
            return
        if self._splitter.channel != "think":
            yield Notice(kind="steering", text="there is no thought to steer: the answer is being written")
            return
        yield from self._carry_out(wish)

    def _carry_out(self, wish: Wish) -> Iterator[Event]:
        match wish.kind:
            case "answer":
                yield Notice(kind="steering", text="closing the thought; the answer follows")
                _, _, rest = "".join(self._words).partition(THINK_END)
                self._words = deque(_WORD.findall(THINK_END + rest))
            case "hint":
                yield Notice(kind="steering", text="the hint is in the thought")
                yield from self._splitter.feed(f"\n\n{wish.text.strip()}\n\n")
            case "more":
                self._more += 1
                yield Notice(kind="steering", text="the thought will go on once more where it would end")
