"""One reply of a batch: what it has, and what it must know of its tokens."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx

from r1mac.engine.constraint import Constraint
from r1mac.engine.control import Control
from r1mac.engine.events import Event
from r1mac.engine.guidance import Guide
from r1mac.engine.logprobs import chosen_token
from r1mac.engine.reply import Reply
from r1mac.engine.tokenizer import Tokenizer
from r1mac.errors import R1MacError


class Row:
    """One reply of a batch.

    The generator computes a token before it hands over the one before it. A row that must know that one first, for
    penalties, a format or probabilities, is shown it by ``look``.

    Attributes:
        uid: its number in the generator; None while it is out.
        cache: what it has read while it is out, with *read_ids*, the tokens.
        cached_tokens: how many tokens were read already when it entered.
        read_tokens: how many were read since.
    """

    def __init__(self, ticket: int, reply: Reply, control: Control, tokenizer: Tokenizer) -> None:
        self.ticket, self.reply, self.control = ticket, reply, control
        self.guide = Guide(reply, tokenizer, control)
        self.uid: int | None = None
        self.cache: Any = None
        self.read_ids: list[int] = []
        self.cached_tokens = self.read_tokens = 0
        self.paused_at = 0.0
        self._tokenizer = tokenizer
        answer_format = reply.answer_format
        self._constraint = None if answer_format is None else Constraint(answer_format, tokenizer)
        # What came of the token that was shown last and is still to be handed over.
        self._accepted: tuple[int, str | None, list[Event]] | None = None
        # What tokens are chosen from: the model's own logits, and those that are allowed.
        self._traces: deque[mx.array] = deque()
        self._allowed: mx.array | None = None
        self._error: R1MacError | None = None

    @property
    def looks(self) -> bool:
        """Whether each token has to be known before the next one is chosen."""
        reply = self.reply
        return reply.sampler.needs_history or reply.request.logprobs is not None or self._constraint is not None

    @property
    def complete(self) -> bool:
        """Whether the answer has come to a stop text, or has all that its format allows."""
        reply = self.reply
        constrains = self._constraint is not None and reply.channel == "answer"
        return reply.stopped or (
            constrains and self._constraint is not None and self._constraint.finished(reply.answer_ids)
        )

    def look(self, token_ids: mx.array, logits: mx.array) -> mx.array:
        """See which token was chosen last, and what the next one is chosen from. mlx-lm calls this.

        Args:
            token_ids: those of prompt and reply so far.
            logits: the model's own for the next one, ``[1, vocabulary]``.
        """
        reply = self.reply
        if token_ids.shape[0] > len(reply.prompt_ids) + len(reply.token_ids):
            self.accept(int(token_ids[-1].item()))  # type: ignore[arg-type]
        if reply.request.logprobs is not None:
            self._traces.append(logits[0])
        self._allowed = logits
        if self._constraint is not None and reply.channel == "answer" and not self.complete:
            try:
                self._allowed = self._constraint.mask(logits, reply.answer_ids, may_think=reply.may_open_thought)
            except R1MacError as error:
                # Only this reply is concerned; it ends where the token is handed over.
                self._error = error
        return logits

    def accept(self, token_id: int) -> str | None:
        """Add a token to the reply, unless ``look`` did so already; return the text that is to come in its place."""
        if self._accepted is None or self._accepted[0] != len(self.reply.token_ids):
            ended = token_id in self._tokenizer.end_ids
            insertion = None if ended else self.guide.in_place_of(token_id)
            channel = self.reply.channel
            events: list[Event] = [] if ended or insertion is not None else list(self.reply.take(token_id))
            if self._traces and not ended:
                logits, count = self._traces.popleft(), self.reply.request.logprobs or 0
                if insertion is None:
                    events.append(chosen_token(logits, token_id, count, channel=channel, tokenizer=self._tokenizer))
            self._accepted = (len(self.reply.token_ids), insertion, events)
        return self._accepted[1]

    def accepted(self) -> Iterator[Event]:
        """Yield what came of the token that was added last.

        Raises:
            R1MacError: what the token after it may be cannot be said.
        """
        if self._accepted is not None:
            yield from self._accepted[2]
        self._accepted = None
        if self._error is not None:
            raise self._error

    def sampler(self) -> Callable[[mx.array], mx.array]:
        """Return what chooses the tokens that follow those that the reply has."""
        self._traces.clear()
        self._accepted = None
        reply = self.reply
        if reply.sampler.is_greedy and not reply.request.sampling.logit_bias and not self.looks:
            return _likeliest
        positions = itertools.count(len(reply.token_ids))
        if self.looks:
            # mlx-lm hands over probabilities; penalties are made for what the model said.
            return lambda _: reply.sampler.choose(self._logits(), next(positions), reply.token_ids)
        return lambda logits: reply.sampler.choose(logits, next(positions))

    def _logits(self) -> mx.array:
        assert self._allowed is not None
        return self._allowed


def _likeliest(logits: mx.array) -> mx.array:
    """Choose for all rows at once: mlx-lm asks once where all have the same sampler."""
    return mx.argmax(logits, axis=-1)
