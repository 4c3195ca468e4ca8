"""The tokens that a model has read, with their cache, and the loops that add to them."""

from collections.abc import Iterator

import mlx.core as mx
from mlx import nn

from r1mac.engine.kv import make_kv_cache
from r1mac.engine.sampling import Sampler
from r1mac.plan.memory import WIDE_BITS

# MLX keeps freed buffers; over a long thought the growing cache leaves many of odd sizes.
_CLEAR_EVERY_TOKENS = 256


class Transcript:
    """What a model has read, token for token. Lives on the thread that loaded the model."""

    def __init__(self, model: nn.Module, *, prefill_step_tokens: int, kv_bits: int = WIDE_BITS) -> None:
        self._model = model
        self._prefill_step_tokens = prefill_step_tokens
        self._kv_bits = kv_bits
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._cache = make_kv_cache(self._model, kv_bits=self._kv_bits)
        # What the cache holds. Kept as plain numbers: lazy arrays belong to one thread.
        self._token_ids: list[int] = []

    @property
    def cache_bytes(self) -> int:
        """What the cache takes."""
        return sum(layer.nbytes for layer in self._cache)

    def rewind_to(self, prompt_ids: list[int]) -> int:
        """Cut back to what is shared with *prompt_ids*, and return how many tokens those are."""
        # The last token is always read, since its logits are wanted.
        shared = _shared_prefix(self._token_ids, prompt_ids[:-1])
        for layer in self._cache:
            layer.trim(len(self._token_ids) - shared)
        del self._token_ids[shared:]
        return shared

    def prefill(self, token_ids: list[int]) -> Iterator[int]:
        """Read tokens and yield how many are done, after each step."""
        for layer in self._cache:
            layer.reserve(len(self._token_ids) + len(token_ids))
        for start in range(0, len(token_ids), self._prefill_step_tokens):
            step = token_ids[start : start + self._prefill_step_tokens]
            # The cache is all that is evaluated: no logits, and nothing of the last layer but its keys and values.
            self._model(mx.array([step]), cache=self._cache)
            mx.eval([layer.state for layer in self._cache])
            self._token_ids.extend(step)
            mx.clear_cache()
            yield start + len(step)

    def decode(self, last_id: int, sampler: Sampler, limit: int) -> Iterator[int]:
        """Read *last_id* and yield at most *limit* tokens that follow.

        The next one is already being computed while the caller has this one.
        """
        token = self._step(mx.array([last_id]), sampler)
        self._token_ids.append(last_id)
        for count in range(1, limit + 1):
            following = self._step(token, sampler) if count < limit else None
            token_id = int(token.item())  # type: ignore[arg-type]
            if following is not None:
                self._token_ids.append(token_id)
                token = following
            yield token_id
            if count % _CLEAR_EVERY_TOKENS == 0:
                mx.clear_cache()

    def _step(self, token: mx.array, sampler: Sampler) -> mx.array:
        logits = self._model(token[None], cache=self._cache)[:, -1, :]
        following = sampler(logits)
        mx.async_eval(following)  # type: ignore[no-untyped-call]
        return following


def _shared_prefix(left: list[int], right: list[int]) -> int:
    """Return how many tokens two lists begin with in common."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
