"""One conversation: request to events."""

import time
from collections.abc import Iterator
from typing import Literal

import mlx.core as mx
from mlx import nn

from r1mac.engine.control import Control
from r1mac.engine.events import Event, Finished, GenerationStats, PrefillProgress, TextDelta
from r1mac.engine.prompt import PromptTemplate
from r1mac.engine.request import GenerateRequest
from r1mac.engine.sampling import make_sampler
from r1mac.engine.think import ThinkSplitter
from r1mac.engine.tokenizer import Tokenizer
from r1mac.engine.transcript import Transcript
from r1mac.errors import DoesNotFit
from r1mac.plan.memory import WIDE_BITS


class Session:
    """One conversation. Lives on the thread that loaded the model; generates one answer at a time.

    The caller hands over the whole conversation each time; what of it is still in the cache is not read again.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        template: PromptTemplate,
        *,
        context_tokens: int,
        prefill_step_tokens: int,
        kv_bits: int = WIDE_BITS,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._context_tokens = context_tokens
        self._transcript = Transcript(model, prefill_step_tokens=prefill_step_tokens, kv_bits=kv_bits)

    def generate(self, request: GenerateRequest, control: Control | None = None) -> Iterator[Event]:
        """Yield events; the last is Finished.

        Raises:
            DoesNotFit: the prompt alone fills the planned context.
        """
        control = control or Control()
        prompt = self._template.render(request.messages, think=request.think)
        prompt_ids = self._tokenizer.encode(prompt.text)
        if len(prompt_ids) >= self._context_tokens:
            raise DoesNotFit(
                f"the conversation has {len(prompt_ids)} tokens and memory is planned for {self._context_tokens}",
                hint="shorten the prompt, or allow more with --context (in a chat, /reset begins anew)",
            )
        splitter = ThinkSplitter(in_thought=prompt.in_thought, can_open=self._template.thinks and request.think)
        run = _Run(request, splitter, self._tokenizer)
        try:
            yield from self._answer(run, prompt_ids, control)
        finally:
            if not run.complete:
                # Stopped between two steps of the pipeline: cache and token list may not agree.
                self._transcript.forget()

    def _answer(self, run: "_Run", prompt_ids: list[int], control: Control) -> Iterator[Event]:
        mx.reset_peak_memory()
        cached_tokens = self._transcript.rewind_to(prompt_ids)
        run.begin_prefill(len(prompt_ids), cached_tokens)
        for done_tokens in self._transcript.prefill(prompt_ids[cached_tokens:-1]):
            yield PrefillProgress(
                done_tokens=cached_tokens + done_tokens, total_tokens=len(prompt_ids), cached_tokens=cached_tokens
            )
            if control.cancelled:
                yield run.finish("cancelled")
                return
        room = self._context_tokens - len(prompt_ids)
        limit = min(run.request.max_tokens, room)
        reason: Literal["stop", "length", "context", "cancelled"]
        reason = "length" if run.request.max_tokens <= room else "context"
        for token_id in self._transcript.decode(prompt_ids[-1], make_sampler(run.request.sampling), limit):
            if not run.generated_tokens:
                run.begin_decode()
                yield PrefillProgress(
                    done_tokens=len(prompt_ids), total_tokens=len(prompt_ids), cached_tokens=cached_tokens
                )
            run.generated_tokens += 1
            if token_id in self._tokenizer.end_ids:
                reason = "stop"
                break
            yield from run.take(token_id)
            if control.cancelled:
                reason = "cancelled"
                break
        yield from run.flush()
        yield run.finish(reason)


class _Run:
    """The counts, times and text of one answer."""

    def __init__(self, request: GenerateRequest, splitter: ThinkSplitter, tokenizer: Tokenizer) -> None:
        self.request = request
        self.generated_tokens = 0
        self.complete = False
        self._splitter = splitter
        self._text = tokenizer.stream()
        self._think_tokens = 0
        self._prompt_tokens = self._cached_tokens = self._prefill_peak_bytes = 0
        self._prefill_started = self._decode_started = time.perf_counter()

    def begin_prefill(self, prompt_tokens: int, cached_tokens: int) -> None:
        self._prompt_tokens, self._cached_tokens = prompt_tokens, cached_tokens
        self._prefill_started = self._decode_started = time.perf_counter()

    def begin_decode(self) -> None:
        self._decode_started = time.perf_counter()
        self._prefill_peak_bytes = mx.get_peak_memory()

    def take(self, token_id: int) -> Iterator[TextDelta]:
        if self._splitter.channel == "think":
            self._think_tokens += 1
        if text := self._text.push(token_id):
            yield from self._splitter.feed(text)

    def flush(self) -> Iterator[TextDelta]:
        if text := self._text.finish():
            yield from self._splitter.feed(text)
        yield from self._splitter.finish()

    def finish(self, reason: Literal["stop", "length", "context", "cancelled"]) -> Finished:
        self.complete = True
        ended = time.perf_counter()
        decode_started = self._decode_started if self.generated_tokens else ended
        return Finished(
            reason=reason,
            stats=GenerationStats(
                prompt_tokens=self._prompt_tokens,
                cached_tokens=self._cached_tokens,
                generated_tokens=self.generated_tokens,
                think_tokens=self._think_tokens,
                prefill_seconds=decode_started - self._prefill_started,
                decode_seconds=ended - decode_started,
                prefill_peak_bytes=self._prefill_peak_bytes,
                peak_bytes=mx.get_peak_memory(),
            ),
        )
