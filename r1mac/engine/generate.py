"""One conversation: request to events."""

from collections.abc import Iterator

import mlx.core as mx
from mlx import nn

from r1mac.engine.control import Control
from r1mac.engine.events import Event
from r1mac.engine.prompt import PromptTemplate
from r1mac.engine.reply import begin_reply
from r1mac.engine.request import GenerateRequest
from r1mac.engine.tokenizer import Tokenizer
from r1mac.engine.transcript import Transcript
from r1mac.engine.writing import Writing
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
        reply = begin_reply(request, self._template, self._tokenizer, context_tokens=self._context_tokens)
        mx.reset_peak_memory()
        writing = Writing(reply, self._transcript, self._tokenizer, control or Control())
        try:
            yield from writing.events()
        except GeneratorExit:
            raise
        except BaseException:
            # Something failed inside a step: what the cache holds is not known.
            self._transcript.forget()
            raise
