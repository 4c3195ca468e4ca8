"""One conversation: request to events."""

from collections.abc import Iterator

import mlx.core as mx
from mlx import nn

from r1mac.engine.control import Control
from r1mac.engine.events import Event
from r1mac.engine.prompt import PromptTemplate
from r1mac.engine.reply import Reply
from r1mac.engine.request import GenerateRequest
from r1mac.engine.think import ThinkSplitter
from r1mac.engine.tokenizer import Tokenizer
from r1mac.engine.transcript import Transcript
from r1mac.engine.writing import Writing
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
        prompt = self._template.render(request.messages, think=request.think)
        prompt_ids = self._tokenizer.encode(prompt.text)
        if len(prompt_ids) >= self._context_tokens:
            raise DoesNotFit(
                f"the conversation has {len(prompt_ids)} tokens and memory is planned for {self._context_tokens}",
                hint="shorten the prompt, or allow more with --context (in a chat, /reset begins anew)",
            )
        splitter = ThinkSplitter(in_thought=prompt.in_thought, can_open=self._template.thinks and request.think)
        mx.reset_peak_memory()
        reply = Reply(request, prompt_ids, splitter=splitter, tokenizer=self._tokenizer)
        writing = Writing(
            reply, self._transcript, self._tokenizer, control or Control(), context_tokens=self._context_tokens
        )
        try:
            yield from writing.events()
        except GeneratorExit:
            raise
        except BaseException:
            # Something failed inside a step: what the cache holds is not known.
            self._transcript.forget()
            raise
