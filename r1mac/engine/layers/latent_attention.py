"""DeepSeek's latent attention in blocks: a long step or context needs no matrix of heads x step x context.

mlx-lm's own expands keys and values of the whole context for every step of more than one token, and holds the scores
of all heads at once. Here some heads attend to a block of keys at a time. What a query has seen is kept as its largest
score, the sum of the exponentials and their sum of values, in float32, and rescaled when a larger score comes (Milakov
and Gimelshein 2018, «Online normalizer calculation for softmax»). Steps of few queries stay in the latent's space, as
mlx-lm's single tokens do.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn

from r1mac import mlx_lm_api
from r1mac.catalog.arch import LatentAttention
from r1mac.engine.layers.kv import LayerCache
from r1mac.plan.latent_blocks import LatentBlocks, latent_blocks

# A few tokens, as a draft has them, are queued through all layers; one stop for each would cost more than they take.
_LEAST_WAITING_TOKENS = 32


def install_latent_attention(model: nn.Module) -> None:
    """Give every latent attention of *model* this forward pass; weights, names and all else stay."""
    found = [layer.self_attn for layer in model.layers if type(layer.self_attn) is mlx_lm_api.DeepseekV3Attention]
    for module in found:
        module.__class__ = BlockedLatentAttention
        # Of the last layer a prompt's step wants keys and values only: its attention must stay lazy.
        module.waits = module is not found[-1]


class BlockedLatentAttention(mlx_lm_api.DeepseekV3Attention):  # type: ignore[misc]
    """mlx-lm's module with another forward pass for more than one token, and for one where the cache holds codes.

    Attributes:
        waits: whether what is queued is computed before more is. MLX allocates what an operation gives when the
            operation is queued, so that blocks or layers that wait in its queue take memory all at once.
    """

    waits = True

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """Return the heads' outputs put together, of the shape of *x*.

        Args:
            x: normed input ``[rows, tokens, hidden]``.
            mask: booleans ``[tokens, context]`` or ``[rows, 1, tokens, context]``, ``"causal"`` or None. A
                ``LayerCache`` hides nothing but what is to come, so that with one no mask is ever made.
            cache: gives latents and rotary keys ``[rows, 1, context, length]``; None if there is none.
        """
        rows, tokens, _ = x.shape
        if tokens == 1:
            if isinstance(cache, LayerCache) and cache.has_codes:
                return self._attend_codes(x, cache)
            return super().__call__(x, mask, cache)  # type: ignore[no-any-return]
        offset = 0 if cache is None else cache.offset
        queries = self._queries(x, offset)
        latents, rotary_keys = self._latents(x, offset)
        if cache is not None:
            latents, rotary_keys = cache.update_and_fetch(latents, rotary_keys)
        causal = isinstance(cache, LayerCache) or isinstance(mask, str)
        context = _Context(latents, rotary_keys, None if causal else mask, tokens if causal else 0)
        blocks = latent_blocks(self._shape, step_tokens=tokens, context_tokens=context.tokens, rows=rows)
        in_one = blocks.heads == self.num_heads and blocks.keys == context.tokens
        waits = self.waits and (tokens >= _LEAST_WAITING_TOKENS or not in_one)
        outputs: list[mx.array] = []
        for start in range(0, self.num_heads, blocks.heads):
            heads = slice(start, start + blocks.heads)
            outputs.append(self._attend(queries[:, heads], context, heads, blocks))
            if waits:
                mx.eval(outputs[-1])
        return self.o_proj(mx.concatenate(outputs, axis=-1))  # type: ignore[no-any-return]

    @property
    def _shape(self) -> LatentAttention:
        return LatentAttention(
            head_count=self.num_heads,
            q_lora_rank=self.q_lora_rank,
            kv_lora_rank=self.kv_lora_rank,
            rope_head_dim=self.qk_rope_head_dim,
            nope_head_dim=self.qk_nope_head_dim,
            value_head_dim=self.v_head_dim,
        )

    def _queries(self, x: mx.array, offset: Any) -> mx.array:
        """Return scaled queries ``[rows, heads, tokens, nope + rope]``, the second part turned by its position."""
        rows, tokens, _ = x.shape
        flat = self.q_proj(x) if self.q_lora_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        queries = flat.reshape(rows, tokens, self.num_heads, self.q_head_dim).transpose(0, 2, 1, 3)
        bare, rotary = mx.split(queries, [self.qk_nope_head_dim], axis=-1)
        scaled: mx.array = mx.concatenate([bare, self.rope(rotary, offset)], axis=-1) * self.scale
        return scaled

    def _latents(self, x: mx.array, offset: Any) -> tuple[mx.array, mx.array]:
        """Return latents and rotary keys of these tokens, ``[rows, 1, tokens, length]``."""
        compressed, rotary = mx.split(self.kv_a_proj_with_mqa(x), [self.kv_lora_rank], axis=-1)
        return self.kv_a_layernorm(compressed)[:, None], self.rope(rotary[:, None], offset)

    def _attend_codes(self, x: mx.array, cache: LayerCache) -> mx.array:
        """Return the output for a single token, in the latent's space: codes are multiplied as they are."""
        bare, rotary = mx.split(self._queries(x, cache.offset), [self.qk_nope_head_dim], axis=-1)
        latents, rotary_keys = cache.append(*self._latents(x, cache.offset))
        # All heads share one latent: they are so many queries to it.
        inner, rotary = self.embed_q(bare).swapaxes(1, 2), rotary.swapaxes(1, 2)
        scores = latents.scores(inner) + rotary_keys.scores(rotary)
        mixed = latents.mix(mx.softmax(scores, axis=-1, precise=True)).swapaxes(1, 2)
        return self.o_proj(self.unembed_out(mixed).transpose(0, 2, 1, 3).flatten(2))  # type: ignore[no-any-return]

    def _attend(self, queries: mx.array, context: "_Context", heads: slice, blocks: LatentBlocks) -> mx.array:
        """Return what a group of heads takes from the context, ``[rows, tokens, heads x value]``."""
        embed = _HeadMatrices(self.embed_q, heads, expanding=not blocks.absorbed)
        unembed = _HeadMatrices(self.unembed_out, heads, expanding=not blocks.absorbed)
        if blocks.absorbed:
            bare, rotary = mx.split(queries, [self.qk_nope_head_dim], axis=-1)
            queries = mx.concatenate([embed(bare), rotary], axis=-1)
        seen: _Seen | None = None
        finished: list[mx.array] = []
        edges = [*range(0, context.tokens, blocks.keys), context.tokens]
        for start, end in pairwise(edges):
            if seen is not None:
                if self.waits:
                    mx.eval(seen)
                # Queries that come before this block have seen all they may.
                if count := context.queries_before(start, queries.shape[2]):
                    finished.append(seen.rows(stop=count).mean(queries.dtype))
                    seen, queries = seen.rows(start=count), queries[:, :, count:]
            latents, rotary_keys = context.latents[:, :, start:end], context.rotary_keys[:, :, start:end]
            keys, values = latents, latents
            if not blocks.absorbed:
                keys, values = embed(latents, transpose=False), unembed(latents)
                rotary_keys = mx.broadcast_to(rotary_keys, (*keys.shape[:3], rotary_keys.shape[3]))
            keys = mx.concatenate([keys, rotary_keys], axis=-1)
            seen = _look(seen, queries, keys, values, context.visible(start, end, queries.shape[2]))
        assert seen is not None
        finished.append(seen.mean(queries.dtype))
        output = mx.concatenate(finished, axis=2)
        output = unembed(output) if blocks.absorbed else output
        return output.transpose(0, 2, 1, 3).flatten(2)


class _Context(NamedTuple):
    """The keys of a step, and what its queries may see of them.

    Attributes:
        latents: ``[rows, 1, tokens, rank]``, *rotary_keys* the same with another length.
        mask: booleans; None hides nothing, or what the next attribute says.
        causal_tokens: how many of the last tokens ask, each seeing itself and what came before; 0 if that is not known.
    """

    latents: mx.array
    rotary_keys: mx.array
    mask: mx.array | None
    causal_tokens: int

    @property
    def tokens(self) -> int:
        return int(self.latents.shape[2])

    def queries_before(self, key: int, asking: int) -> int:
        """Return how many of the last *asking* tokens come before *key*."""
        return max(0, key - (self.tokens - asking)) if self.causal_tokens else 0

    def visible(self, start: int, end: int, asking: int) -> mx.array | None:
        """Return for the last *asking* tokens which of the keys from *start* to *end* they see; None for all."""
        if self.mask is not None:
            visible: mx.array = self.mask[..., start:end]
            return visible
        first = self.tokens - asking
        if not self.causal_tokens or end <= first + 1:
            return None
        return mx.arange(first, self.tokens)[:, None] >= mx.arange(start, end)


class _Seen(NamedTuple):
    """What queries have taken from the keys so far, in float32.

    Attributes:
        largest: score, ``[rows, heads, tokens, 1]``.
        total: of the exponentials of all scores less the largest, of the same shape.
        mixed: values times these exponentials, ``[rows, heads, tokens, length]``.
    """

    largest: mx.array
    total: mx.array
    mixed: mx.array

    def rows(self, *, start: int = 0, stop: int | None = None) -> "_Seen":
        return _Seen(*(part[:, :, start:stop] for part in self))

    def mean(self, dtype: mx.Dtype) -> mx.array:
        return (self.mixed / self.total).astype(dtype)


def _look(seen: _Seen | None, queries: mx.array, keys: mx.array, values: mx.array, visible: mx.array | None) -> _Seen:
    """Return *seen* with a block of keys and values added.

    Args:
        seen: what was seen of other blocks.
        queries: ``[rows, heads, tokens, length]``.
        keys: ``[rows, heads or 1, keys, length]``.
        values: the same, of another length.
        visible: booleans that can be broadcast to the scores.
    """
    scores = _multiply(queries, keys.swapaxes(-1, -2)).astype(mx.float32)
    if visible is not None:
        # Not -inf: a row of padding, which sees nothing, has to stay a number.
        scores = mx.where(visible, scores, mx.finfo(mx.float32).min)
    largest = scores.max(axis=-1, keepdims=True)
    if seen is not None:
        largest = mx.maximum(seen.largest, largest)
    shares = mx.exp(scores - largest)
    total = shares.sum(axis=-1, keepdims=True)
    mixed = _multiply(shares.astype(values.dtype), values).astype(mx.float32)
    if seen is None:
        return _Seen(largest, total, mixed)
    kept = mx.exp(seen.largest - largest)
    return _Seen(largest, seen.total * kept + total, seen.mixed * kept + mixed)


def _multiply(left: mx.array, right: mx.array) -> mx.array:
    """Return the products of each head, in one where all heads share *right*."""
    rows, heads, tokens, length = left.shape
    if right.shape[1] == heads:
        return left @ right
    return (left.reshape(rows, 1, heads * tokens, length) @ right).reshape(rows, heads, tokens, -1)


class _HeadMatrices:
    """The matrices of some heads of a ``MultiLinear``, whose rows are *x* or, with *expanding*, many keys.

    Codes are then turned into values once: the products with every block need them again, and MLX's CPU backend would
    copy the latents for each head.
    """

    def __init__(self, module: nn.Module, heads: slice, *, expanding: bool) -> None:
        self._module = module
        self._weight, self._codes = module.weight[heads], None
        if "scales" in module:
            biases = module.get("biases")
            self._codes = (module.scales[heads], None if biases is None else biases[heads])
            if expanding:
                self._weight, self._codes = mx.dequantize(self._weight, *self._codes, **self._format), None

    def __call__(self, x: mx.array, *, transpose: bool = True) -> mx.array:
        """Return ``x @ weight.T`` for each head, or ``x @ weight``."""
        if self._codes is not None:
            return mx.quantized_matmul(x, self._weight, *self._codes, transpose=transpose, **self._format)
        product: mx.array = x @ (self._weight.swapaxes(-1, -2) if transpose else self._weight)
        return product

    @property
    def _format(self) -> dict[str, Any]:
        return {"group_size": self._module.group_size, "bits": self._module.bits, "mode": self._module.mode}
