"""The tokens that a model has read, with their cache."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlx import nn

from r1mac.engine.layers.kv import LayerCache, make_kv_cache
from r1mac.engine.prefix import shared_prefix
from r1mac.plan.memory import WIDE_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldPrefix:
    """Tokens that were read, with their cache, put aside.

    Attributes:
        kv_bits: the width that the cache was asked for.
    """

    token_ids: tuple[int, ...]
    layers: tuple[LayerCache, ...]
    kv_bits: int

    @property
    def nbytes(self) -> int:
        """What the cache takes."""
        return sum(layer.nbytes for layer in self.layers)


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
    def token_ids(self) -> Sequence[int]:
        """The tokens that are known to be in the cache."""
        return self._token_ids

    @property
    def kv_bits(self) -> int:
        """The width that the cache was asked for; what cannot be that narrow is wider."""
        return self._kv_bits

    @property
    def cache_bytes(self) -> int:
        """What the cache takes."""
        return sum(layer.nbytes for layer in self._cache)

    @property
    def room_tokens(self) -> int:
        """How many tokens the cache can hold before it grows."""
        return min((layer.room_tokens for layer in self._cache), default=0)

    def shared_with(self, token_ids: Sequence[int]) -> int:
        """Return how many tokens *token_ids* has in common with what was read, from the beginning."""
        return shared_prefix(self._token_ids, token_ids)

    def rewind_to(self, token_ids: Sequence[int]) -> int:
        """Cut back to what is shared with *token_ids*, and return how many tokens those are.

        The last of *token_ids* is never among them: it must be read, since its logits are wanted.
        """
        shared = shared_prefix(self._token_ids, token_ids[:-1])
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

    def requantize(self, bits: int) -> None:
        """Narrow the cache in place, and what will be read, to *bits*; a layer at a time, none of it computed anew."""
        for layer in self._cache:
            layer.requantize(bits)
            mx.clear_cache()
        self._kv_bits = min(self._kv_bits, bits)

    def reserve(self, tokens: int) -> None:
        """Make room for *tokens* in all."""
        for layer in self._cache:
            layer.reserve(tokens)

    def export(self, start: int, stop: int) -> dict[str, mx.array]:
        """Return what is stored of the tokens from *start* to before *stop*, each array named ``LAYER.PART``."""
        return {
            f"{index}.{name}": array
            for index, layer in enumerate(self._cache)
            for name, array in layer.export(start, stop).items()
        }

    def load(self, token_ids: Sequence[int], arrays: Mapping[str, mx.array]) -> None:
        """Append tokens that another transcript of this model and width exported.

        Raises:
            ValueError: *arrays* are not those of these tokens in this model; nothing is appended.
        """
        start = len(self._token_ids)
        by_layer: dict[str, dict[str, mx.array]] = {str(index): {} for index in range(len(self._cache))}
        for name, array in arrays.items():
            index, _, part = name.partition(".")
            if index not in by_layer:
                raise ValueError(f"{name} is of no layer of a model that has {len(self._cache)}")
            by_layer[index][part] = array
        try:
            for layer, parts in zip(self._cache, by_layer.values(), strict=True):
                layer.load(parts)
                if layer.offset != start + len(token_ids):
                    raise ValueError(f"{layer.offset - start} tokens are stored where {len(token_ids)} should be")
        except ValueError:
            self.keep(start)
            raise
        # One step at a time: left lazy, what was read from the disk would stay beside the cache.
        mx.eval([layer.state for layer in self._cache])
        self._token_ids.extend(token_ids)

    def hold(self, tokens: int, *, fitted: bool = False) -> HeldPrefix:
        """Put the first *tokens* aside; their memory is shared until either is written to, and nothing is copied.

        Args:
            tokens: how many.
            fitted: free the room behind them, which copies them once where there is any; the transcript is empty then.
        """
        layers = tuple(layer.fork(tokens) for layer in self._cache)
        held = HeldPrefix(token_ids=tuple(self._token_ids[:tokens]), layers=layers, kv_bits=self._kv_bits)
        if fitted:
            self.forget()
            for layer in layers:
                layer.fit()
                mx.clear_cache()
        return held

    def adopt(self, held: HeldPrefix) -> None:
        """Have read what was put aside, and nothing else."""
        self._cache = [layer.fork(layer.offset) for layer in held.layers]
        self._token_ids = list(held.token_ids)
        self._kv_bits = held.kv_bits

    def feed(self, tokens: mx.array) -> mx.array:
        """Return the logits ``[n, vocabulary]`` after each of *tokens* ``[n]``, which follow what was fed before.

        Nothing is computed yet. The tokens count as read when they are committed; until then the cache is ahead.
        """
        logits: mx.array = self._model(tokens[None], cache=self._cache)[0]
        return logits

    def commit(self, token_ids: Sequence[int]) -> None:
        """Note the values of tokens that were fed."""
        self._token_ids.extend(token_ids)
