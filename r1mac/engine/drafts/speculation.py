"""Decoding that tries several tokens at once: drafted cheaply, and kept where the model chooses the same.

Each token is chosen from the model's own logits, with the random numbers of its place in the reply; a draft only
decides how many places are computed in one step. So the text is that of plain decoding for the same seed, and where
the kernels of several rows round otherwise, its distribution.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple, Protocol

import mlx.core as mx

from r1mac.engine.decode import CLEAR_EVERY_TOKENS
from r1mac.engine.drafts.length import best_length
from r1mac.engine.drafts.step_costs import Gauge, StepCosts
from r1mac.engine.sampling import Sampler
from r1mac.engine.transcript import Transcript

# Most tokens that are drafted at once.
MOST_DRAFTED = 15
# Measuring takes as long as ten tokens: it waits until drafts would have been made for so many.
_TELLING_TOKENS = 16
_WORTH_MEASURING_TOKENS = 32
# What is assumed of a machine that was not measured, to tell whether measuring is worth it.
_HOPED_COSTS = StepCosts({1: 1.0, MOST_DRAFTED + 1: 2.0})


class Drafter(Protocol):
    """Foretells how a text goes on."""

    def begin(self, token_ids: Sequence[int]) -> None:
        """Take *token_ids* for the text."""

    def prefill(self, token_ids: Sequence[int]) -> Iterator[int]:
        """Read a text that is to be continued, if that takes time, and yield how many tokens were read."""

    def take(self, token_ids: Sequence[int], drafted: int) -> None:
        """Go on with further tokens of the text.

        Where *drafted* ones were proposed, those but the last are the ones that came true.
        """

    def chances(self, most: int, *, skipped: int = 0) -> Sequence[float]:
        """Return how likely each of up to *most* drafted tokens is right if those before it are.

        With *skipped* those behind as many tokens are meant, if these come as foretold.
        """

    def propose(self, count: int, sampler: Sampler, position: int) -> Sequence[int] | mx.array:
        """Return *count* tokens that may follow the text; the first one's place in the reply is *position*."""

    def drafting_seconds(self, sampler: Sampler) -> float:
        """Return what drafting one token takes."""


class _Step(NamedTuple):
    """Tokens that are being chosen: one, and one more for each that was drafted."""

    choices: mx.array
    draft: mx.array | None = None


class Speculation:
    """Decodes with the drafts of one drafter. One for each conversation: what was learned of the drafts stays.

    Attributes:
        drafted_tokens: how many were drafted in all.
        accepted_tokens: how many of them became part of a text.
    """

    def __init__(self, drafter: Drafter, gauge: Gauge, *, most_drafted: int = MOST_DRAFTED) -> None:
        self.drafted_tokens = self.accepted_tokens = 0
        self._drafter = drafter
        self._gauge = gauge
        self._most_drafted = most_drafted
        self._ratios: Sequence[float] | None = None  # by number of tokens
        self._hoped_ratios = self._table(_HOPED_COSTS)
        self._drafting_cost = 0.0
        self._telling_tokens = 0

    @property
    def is_on(self) -> bool | None:
        """Whether another draft would be made now; None until it is known what verifying costs here."""
        if self._ratios is None:
            return None
        return self._length(self._most_drafted, self._ratios) > 0

    def prefill(self, token_ids: Sequence[int]) -> Iterator[int]:
        """Read a text that is to be continued, where drafts may be made; yield after each step of that."""
        if self.is_on is not False:
            yield from self._drafter.prefill(token_ids)

    def decode(
        self, transcript: Transcript, last_id: int, sampler: Sampler, written: Sequence[int], limit: int
    ) -> Generator[int]:
        """Do as ``decode.decode`` does, several tokens at a time where that pays.

        Where nothing is drafted the next token is already being computed while the caller has this one.
        """
        begin, position = len(transcript), len(written)
        delivered = 0
        try:
            self._drafter.begin([*transcript.token_ids, last_id])
            self._use(self._gauge.known(transcript, sampler), sampler)
            for token_ids in self._steps(transcript, last_id, sampler, position, limit):
                for token_id in token_ids:
                    delivered += 1
                    yield token_id
                    if delivered % CLEAR_EVERY_TOKENS == 0:
                        mx.clear_cache()
        finally:
            transcript.keep(min(len(transcript), begin + 1 + delivered))

    def _steps(
        self, transcript: Transcript, last_id: int, sampler: Sampler, position: int, limit: int
    ) -> Iterator[list[int]]:
        """Yield the tokens of each step. The next step is under way by then."""
        end = position + limit
        step = self._start(transcript, last_id, sampler, position, end - position)
        while position < end:
            ahead = None
            if step.draft is None and end - position > 1 and not self._waits(end - position - 1):
                ahead = _Step(_chosen(transcript, step.choices, sampler, position + 1))
            token_ids = self._finish(transcript, step)
            position += len(token_ids)
            if position < end:
                if ahead is not None:
                    transcript.commit(token_ids)
                elif self._is_to_be_measured(end - position):
                    text = [*transcript.token_ids, token_ids[-1]]
                    self._use(self._gauge.measure(transcript, text, sampler), sampler)
                step = ahead or self._start(transcript, token_ids[-1], sampler, position, end - position)
            yield token_ids

    def _start(self, transcript: Transcript, last_id: int, sampler: Sampler, position: int, room: int) -> _Step:
        """Begin to read *last_id* and what is drafted behind it, of which no more than *room* tokens will come."""
        count = self._length(room - 1, self._ratios) if self._ratios else 0
        tokens, draft = mx.array([last_id]), None
        if count:
            proposed = self._drafter.propose(count, sampler, position)
            draft = proposed if isinstance(proposed, mx.array) else mx.array(list(proposed))
            tokens = mx.concatenate([tokens, draft.astype(tokens.dtype)])
        choices = _chosen(transcript, tokens, sampler, position)
        transcript.commit([last_id])
        return _Step(choices, draft)

    def _finish(self, transcript: Transcript, step: _Step) -> list[int]:
        """Return the tokens that were chosen, up to the first that is not the drafted one."""
        token_ids: list[int] = step.choices.tolist()  # type: ignore[assignment]
        if step.draft is None:
            self._drafter.take(token_ids, 0)
            return token_ids
        draft: list[int] = step.draft.tolist()  # type: ignore[assignment]
        accepted = next((at for at, token_id in enumerate(draft) if token_id != token_ids[at]), len(draft))
        transcript.commit(draft[:accepted])
        transcript.keep(len(transcript))
        self.drafted_tokens += len(draft)
        self.accepted_tokens += accepted
        self._drafter.take(token_ids[: accepted + 1], len(draft))
        return token_ids[: accepted + 1]

    def _use(self, costs: StepCosts | None, sampler: Sampler) -> None:
        self._ratios = None
        if costs is not None:
            self._ratios = self._table(costs)
            self._drafting_cost = self._drafter.drafting_seconds(sampler) / costs.seconds[1]

    def _table(self, costs: StepCosts) -> list[float]:
        return [0.0, *(costs.ratio(1 + drafted) for drafted in range(self._most_drafted + 1))]

    def _waits(self, room: int) -> bool:
        """Whether the step after this one must know this one's token: to draft behind it, or to be timed alone."""
        if self._ratios is None:
            self._telling_tokens += self._length(room - 1, self._hoped_ratios, skipped=1) > 0
            return self._is_to_be_measured(room)
        return self._length(room - 1, self._ratios, skipped=1) > 0

    def _is_to_be_measured(self, room: int) -> bool:
        return self._ratios is None and self._telling_tokens >= _TELLING_TOKENS and room >= _WORTH_MEASURING_TOKENS

    def _length(self, most: int, ratios: Sequence[float], *, skipped: int = 0) -> int:
        """Return how many tokens are worth drafting, if the next *skipped* ones come as foretold."""
        chances = self._drafter.chances(min(most, self._most_drafted), skipped=skipped)
        return best_length(chances, ratios.__getitem__, drafting_cost=self._drafting_cost)


def _chosen(transcript: Transcript, tokens: mx.array, sampler: Sampler, position: int) -> mx.array:
    choices = sampler.choose(transcript.feed(tokens), position)
    mx.async_eval(choices)  # type: ignore[no-untyped-call]
    return choices
