"""A smaller model that drafts for a larger one of the same vocabulary."""

from collections.abc import Iterator, Sequence

import mlx.core as mx

from r1mac.engine.drafts.length import Acceptance
from r1mac.engine.drafts.step_costs import Gauge
from r1mac.engine.sampling import Sampler
from r1mac.engine.transcript import Transcript

# What is assumed before the first draft, and again after each pause.
_PRIOR = 0.6
# A drafter that was not worth it is tried again after so many tokens, each time after twice as many.
_PAUSE_TOKENS, _MOST_PAUSE_TOKENS = 64, 1024
# Fewer unread tokens than these are read in the step that drafts.
_MANY_TOKENS = 8


class ModelDrafter:
    """Drafts what a smaller model would write.

    It chooses with the sampler of the larger one, so with the same random numbers: where both models think alike they
    choose alike, also at a high temperature.

    Args:
        transcript: the smaller model's own.
        gauge: times the smaller model.
        vocab_size: how many logits the larger model gives; the rows behind the shared vocabulary are never chosen.
        own_vocab_size: how many the smaller one gives.
    """

    def __init__(self, transcript: Transcript, gauge: Gauge, *, vocab_size: int, own_vocab_size: int) -> None:
        self._transcript = transcript
        self._gauge = gauge
        self._vocab_size, self._own_vocab_size = vocab_size, own_vocab_size
        self._text: list[int] = []
        self._acceptance = Acceptance([_PRIOR])
        self._idle_tokens, self._pause_tokens = 0, _PAUSE_TOKENS

    def prefill(self, token_ids: Sequence[int]) -> Iterator[int]:
        """Read a text that is to be continued, and yield how many tokens were read, after each step."""
        self.begin(token_ids)
        yield from self._transcript.prefill(self._readable(token_ids[len(self._transcript) : -1]))

    def begin(self, token_ids: Sequence[int]) -> None:
        """Take *token_ids* for the text. It is read when a draft is wanted."""
        self._text = list(token_ids)
        self._transcript.rewind_to(self._readable(self._text))

    def take(self, token_ids: Sequence[int], drafted: int) -> None:
        """Go on with further tokens of the text; of *drafted* ones all but the last of these came true."""
        if drafted:
            accepted = len(token_ids) - 1
            # The last one that was drafted was not read.
            self._transcript.commit(token_ids[: min(accepted, drafted - 1)])
            self._transcript.keep(len(self._transcript))
            self._learn(accepted, drafted)
        else:
            self._idle(len(token_ids))
        self._text.extend(token_ids)

    def chances(self, most: int, *, skipped: int = 0) -> list[float]:  # noqa: ARG002 - all tokens are alike
        """Return how likely each of the next tokens is right if those before it are."""
        return [self._acceptance.chance(0)] * most

    def propose(self, count: int, sampler: Sampler, position: int) -> mx.array:
        """Return what the smaller model chooses for the next *count* places, not computed yet."""
        unread = self._readable(self._text[len(self._transcript) :])
        if len(unread) > _MANY_TOKENS:
            for _ in self._transcript.prefill(unread[:-1]):
                pass
            unread = unread[-1:]
        tokens, chosen = mx.array(unread), []
        for index in range(count):
            logits = self._fitted(self._transcript.feed(tokens)[-1:])
            chosen.append(sampler.choose(logits, position + index))
            tokens = mx.minimum(chosen[-1], self._own_vocab_size - 1)
        self._transcript.commit(unread)
        return mx.concatenate(chosen)

    def drafting_seconds(self, sampler: Sampler) -> float:
        """Return what drafting one token takes; the first time, that is measured."""
        costs = self._gauge.known(self._transcript, sampler)
        if costs is None:
            costs = self._gauge.measure(self._transcript, self._readable(self._text), sampler)
        return costs.seconds[1]

    def _learn(self, accepted: int, drafted: int) -> None:
        for _ in range(accepted):
            self._acceptance.learn(0, right=True)
        if accepted < drafted:
            self._acceptance.learn(0, right=False)
        else:
            self._pause_tokens = _PAUSE_TOKENS
        self._idle_tokens = 0

    def _idle(self, tokens: int) -> None:
        self._idle_tokens += tokens
        if self._idle_tokens >= self._pause_tokens:
            self._acceptance = Acceptance([_PRIOR])
            self._idle_tokens = 0
            self._pause_tokens = min(2 * self._pause_tokens, _MOST_PAUSE_TOKENS)

    def _readable(self, token_ids: Sequence[int]) -> list[int]:
        """Return *token_ids* with those that only the larger model has replaced by the last of this one's."""
        return [min(token_id, self._own_vocab_size - 1) for token_id in token_ids]

    def _fitted(self, logits: mx.array) -> mx.array:
        """Return *logits* in the larger model's size: random numbers depend on it."""
        missing = self._vocab_size - logits.shape[-1]
        if missing <= 0:
            return logits[:, : self._vocab_size]
        return mx.pad(logits, [(0, 0), (0, missing)], constant_values=mx.array(-mx.inf, logits.dtype))
