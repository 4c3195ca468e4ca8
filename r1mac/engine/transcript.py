"""The tokens that a model has read, with their cache."""

from collections.abc import Iterator, Sequence

import mlx.core as mx
from mlx import nn

from r1mac.engine.kv import make_kv_cache
from r1mac.plan.memory import WIDE_BITS


class Transcript:
    """What a model has read, token for token. Lives on the thread that loaded the model.

    Attributes:
        prefill_step_tokens: tokens read at once; may change between two steps.
    """

    def __init__(self, model: nn.Module, *, prefill_step_tokens: int, kv_bits: int = WIDE_BITS) -> None:
        self.prefill_step_tokens = prefill_step_tokens
        self._model = model
        self._kv_bits = kv_bits
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._cache = make_kv_cache(self._model, kv_bits=self._kv_bits)
        # What the cache holds. Kept as plain numbers: lazy arrays belong to one thread.
        self._token_ids: list[int] = []

    def __len__(self) -> int:
        """Return how many tokens are known to be in the cache."""
        return len(self._token_ids)

    @property
    def cache_bytes(self) -> int:
        """What the cache takes."""
        return sum(layer.nbytes for layer in self._cache)

    def rewind_to(self, token_ids: Sequence[int]) -> int:
        """Cut back to what is shared with *token_ids*, and return how many tokens those are.

        The last of *token_ids* is never among them: it must be read, since its logits are wanted.
        """
        shared = _shared_prefix(self._token_ids, token_ids[:-1])
        self.keep(shared)
        return shared

    def keep(self, count: int) -> None:
        """Cut back to the first *count* tokens. What was fed and not committed is forgotten."""
        for layer in self._cache:
            layer.trim(layer.offset - count)
        del self._token_ids[count:]

    def prefill(self, token_ids: Sequence[int]) -> Iterator[int]:
        """Read tokens and yield how many are done, after each step."""
        for layer in self._cache:
            layer.reserve(len(self._token_ids) + len(token_ids))
        done = 0
        while done < len(token_ids):
            step = list(token_ids[done : done + self.prefill_step_tokens])
            # The cache is all that is evaluated: no logits, and nothing of the last layer but its keys and values.
            self._model(mx.array([step]), cache=self._cache)
            mx.eval([layer.state for layer in self._cache])
            self._token_ids.extend(step)
            mx.clear_cache()
            done += len(step)
            yield done

    def feed(self, tokens: mx.array) -> mx.array:
        """Return the logits ``[n, vocabulary]`` after each of *tokens* ``[n]``, which follow what was fed before.

        Nothing is computed yet. The tokens count as read when they are committed; until then the cache is ahead.
        """
        logits: mx.array = self._model(tokens[None], cache=self._cache)[0]
        return logits

    def commit(self, token_ids: Sequence[int]) -> None:
        """Note the values of tokens that were fed."""
        self._token_ids.extend(token_ids)


def _shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens two lists begin with in common."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
