"""How long conversations may be: a setting of each model, which may be chosen while the server runs.

What a person chooses (the page, ``POST /r1mac/context``) holds until the next choice, also when the model was let go
of meanwhile; no request changes it. Where nobody chose a context, here or for ``r1mac serve``, a request that wants
more room than there is (Ollama's num_ctx) has it grow: by doublings, as far as it fits, and never back. So clients
with different wishes change it a few times at most, and then no more.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from r1mac.errors import DoesNotFit
from r1mac.plan.fit import MIN_CONTEXT_TOKENS
from r1mac.prepare.planning import Judgement, judge_wish
from r1mac.server.state import ContextOffer, Contexts
from r1mac.settings import CHOICES, RANGES

LEAST_CONTEXT_TOKENS, MOST_CONTEXT_TOKENS = (int(bound) for bound in RANGES["context_tokens"])
_FIRST_STEP_TOKENS = 4096


def grown(wanted_tokens: int, *, context_tokens: int, longest_tokens: int) -> int:
    """Return the context that a wish for more makes of *context_tokens*: a power of two, or the longest that fits.

    What does not fit changes nothing.
    """
    if not context_tokens < wanted_tokens <= longest_tokens:
        return context_tokens
    return min(max(1 << (wanted_tokens - 1).bit_length(), _FIRST_STEP_TOKENS), longest_tokens)


def steps(model_tokens: int, *others: int) -> tuple[int, ...]:
    """Return contexts to choose from: doublings from 4,096 to what the model knows, that itself, and *others*."""
    found = {model_tokens, *(tokens for tokens in others if LEAST_CONTEXT_TOKENS <= tokens <= model_tokens)}
    step = _FIRST_STEP_TOKENS
    while step < model_tokens:
        found.add(step)
        step *= 2
    return tuple(sorted(found))


def with_context(judgement: Judgement, context_tokens: int) -> Judgement:
    """Return the plan and the forecast of the same model on the same computer with another context."""
    return judge_wish(judgement.wish.with_context(context_tokens), judgement.hardware)


def longest_tokens(judgement: Judgement) -> int:
    """Return the longest context that fits."""
    return min(judgement.plan.max_context_tokens, judgement.wish.arch.max_context_tokens)


def require_fit(judgement: Judgement) -> None:
    """Refuse a context that is chosen while the server runs.

    Raises:
        DoesNotFit: with the numbers, and the longest that fits.
    """
    if judgement.can_run:
        return
    longest = longest_tokens(judgement)
    hint = f"the longest that fits is {longest} tokens" if longest else "nothing fits beside the weights"
    if (kv_bits := _narrower_cache(judgement)) is not None:
        hint += f"; `r1mac serve --kv-bits {kv_bits}` has room for it"
    raise DoesNotFit(judgement.problem, hint=hint)


def offers(judgement: Judgement, *in_use: int) -> tuple[ContextOffer, ...]:
    """Return contexts to choose from, with what the model needs in all with each."""
    wish, longest = judgement.wish, longest_tokens(judgement)
    known = wish.arch.max_context_tokens
    also = (longest,) if longest >= MIN_CONTEXT_TOKENS else ()
    plans = (wish.with_context(tokens).plan(judgement.hardware) for tokens in steps(known, *also, *in_use))
    return tuple(
        ContextOffer(context_tokens=plan.context_tokens, total_bytes=plan.total_bytes, fits=plan.fits) for plan in plans
    )


def _narrower_cache(judgement: Judgement) -> int | None:
    """Return the widest cache with which the context would fit; None if none does, or several replies share one."""
    wish = judgement.wish
    if wish.parallel > 1 or judgement.plan.context_tokens > wish.arch.max_context_tokens:
        return None
    narrower = (bits for bits in CHOICES["kv_bits"] if bits < wish.kv_bits)
    return next((bits for bits in narrower if replace(wish, kv_bits=bits).plan(judgement.hardware).fits), None)


class _Choice(NamedTuple):
    """A context. What a request wished for gives way to what a person chooses, and to no other request's less."""

    context_tokens: int
    of_request: bool


class ContextChoices:
    """What was chosen for each model. Of any thread.

    Args:
        judge: tells the plan of a model as the server's settings have it.
    """

    def __init__(self, judge: Callable[[str], Judgement]) -> None:
        self._judge = judge
        self._lock = threading.Lock()
        self._chosen: dict[str, _Choice] = {}
        # What was in force last: what is gone back to where a choice cannot be carried out.
        self._settled: dict[str, _Choice] = {}

    def judgement(self, model: str) -> Judgement | None:
        """Return the plan of a model with the context that was chosen for it; None where none was."""
        with self._lock:
            choice = self._chosen.get(model)
        return None if choice is None else with_context(self._judge(model), choice.context_tokens)

    def choose(self, model: str, context_tokens: int, *, of_request: bool = False) -> None:
        """Have a model planned with *context_tokens* from now on.

        Raises:
            DoesNotFit: with the numbers, and the longest that fits; what was chosen before still is.
        """
        require_fit(with_context(self._judge(model), context_tokens))
        with self._lock:
            former = self._chosen.get(model)
            if not of_request or former is None or former.of_request:
                self._chosen[model] = _Choice(context_tokens, of_request)

    def settle(self, model: str, context_tokens: int) -> None:
        """Note that a model is open with that context."""
        with self._lock:
            choice = self._chosen.get(model)
            if choice is not None and choice.context_tokens == context_tokens:
                self._settled[model] = choice

    def undo(self, model: str, context_tokens: int) -> None:
        """Go back to what was in force before that context was chosen, if nothing else was chosen since."""
        with self._lock:
            if self._chosen.get(model, _Choice(0, of_request=True)).context_tokens != context_tokens:
                return
            if model in self._settled:
                self._chosen[model] = self._settled[model]
            else:
                del self._chosen[model]

    def may_grow(self, model: str, *, free: bool) -> bool:
        """Tell whether requests may have a model's context grow; *free*: the server's settings say nothing of it."""
        with self._lock:
            choice = self._chosen.get(model)
        return free if choice is None else choice.of_request

    def told(self, model: str, context_tokens: int | None) -> Contexts:
        """Return how long conversations with a model may be; *context_tokens* is what it is loaded with, if it is."""
        usual = self._judge(model)
        with self._lock:
            choice = self._chosen.get(model)
        planned = choice.context_tokens if choice is not None else usual.plan.context_tokens
        in_use = planned if context_tokens is None else context_tokens
        return Contexts(
            model=model,
            loaded=context_tokens is not None,
            context_tokens=in_use,
            chosen=choice is not None and not choice.of_request,
            model_context_tokens=usual.wish.arch.max_context_tokens,
            longest_context_tokens=longest_tokens(usual),
            kv_bits=usual.plan.kv_bits,
            budget_bytes=usual.plan.budget_bytes,
            offers=offers(usual, in_use, planned),
        )
