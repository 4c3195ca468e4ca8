"""A text goes through a model of which some rows of one matrix are in memory at a time, in float32.

Memory is the text's hidden states and a few blocks of rows: it depends neither on the model's size nor on that of
its layers or matrices. So a model of any size can be measured on any computer, and several side by side, at the cost
of reading each once.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np

from r1mac.catalog.arch import ArchSpec, GroupedQueryAttention, parse_arch
from r1mac.convert.blocks import DEFAULT_BLOCK_BYTES, Array
from r1mac.convert.float_rows import FloatRows
from r1mac.convert.layout import OutputTensor, plan_layout
from r1mac.convert.passage_attention import attend, heads_apart
from r1mac.convert.passage_experts import Routing, mix_experts
from r1mac.convert.products import Products, gated
from r1mac.convert.recipe import plain
from r1mac.convert.rotary import rotary_of
from r1mac.convert.side_by_side import Work
from r1mac.convert.sources import Source
from r1mac.errors import BadCheckpoint

_VALUE_BYTES = 4
# DeepSeek's own constant for the norms inside its attention.
_LATENT_EPS = 1e-6


class Passage:
    """The model of *source*, whose weights are read when something is multiplied with them.

    Args:
        source: in any precision.
        block_bytes: rows read at once, as float32.

    Raises:
        BadCheckpoint: the tensors do not make the model that config.json describes, or it has parts that are not
            computed here; the text says which.
    """

    def __init__(self, source: Source, *, block_bytes: int = DEFAULT_BLOCK_BYTES) -> None:
        self._rows, self.block_bytes = FloatRows(source), block_bytes
        self._products = Products(self._rows, block_bytes=block_bytes)
        layout = plan_layout(self._rows, plain(bits=16))
        self._tensors = {tensor.name: tensor for tensor in layout.tensors if not tensor.is_prediction}
        self._config = source.config
        self.description = source.description
        self.arch = parse_arch(source.config)
        _check_known(source.config)
        attention = self.arch.attention
        turned = attention.head_dim if isinstance(attention, GroupedQueryAttention) else attention.rope_head_dim
        self._rotary = rotary_of(source.config, turned)
        self._eps = float(source.config.get("rms_norm_eps", 1e-6))

    @property
    def vocab_size(self) -> int:
        """Rows of the head."""
        return self.arch.vocab_size

    @property
    def head_step(self) -> int:
        """The number of the head's rows whose multiples ``logits`` may be asked for."""
        return self._rows.row_step(self._head_name)

    def embedded(self, sequences: Sequence[Sequence[int]]) -> Work[mx.array]:
        """Return hidden states ``[sequences, tokens, hidden]``; of the embedding only the rows needed are read."""
        numbers = np.array(sequences, np.int32)
        ids, places = np.unique(numbers, return_inverse=True)
        name = self._tensors["model.embed_tokens.weight"].sourcing.names[0]
        (rows,) = yield from self._products.results([partial(self._token_rows, name, ids.tolist())], [name])
        return mx.array(rows[places.reshape(numbers.shape)])

    def _token_rows(self, name: str, ids: Sequence[int]) -> Array:
        step, found = self._rows.row_step(name), np.empty((len(ids), self.arch.hidden_size), np.float32)
        for place, token_id in enumerate(ids):
            first = token_id // step * step
            found[place] = self._rows.values(name, first, min(first + step, self.vocab_size))[token_id - first]
        return found

    def through(self, number: int, states: mx.array) -> Work[mx.array]:
        """Return the hidden states ``[sequences, tokens, hidden]`` behind block *number*."""
        prefix, shape = f"model.layers.{number}", states.shape
        flat = states.reshape(-1, shape[-1])
        del states  # the caller may have let go of them
        flat = flat + (yield from self._attention(prefix, flat, shape[1]))
        mx.eval(flat)
        normed = self._normed(f"{prefix}.post_attention_layernorm", flat, self._eps)
        flat = flat + (yield from self._mlp(f"{prefix}.mlp", normed))
        mx.eval(flat)
        return flat.reshape(shape)

    def normed(self, states: mx.array) -> mx.array:
        """Return what the head is given of the last block's hidden states, ``[sequences x tokens, hidden]``."""
        result = self._normed("model.norm", states.reshape(-1, states.shape[-1]), self._eps)
        mx.eval(result)
        return result

    def logits(self, normed: mx.array, start: int, stop: int) -> Work[Array]:
        """Return the logits of words *start* (a multiple of ``head_step``) to *stop*, ``[tokens, stop - start]``."""
        return self._products.times_some(self._head_name, normed, start, stop)

    @property
    def _head_name(self) -> str:
        head = self._tensors.get("lm_head.weight") or self._tensors["model.embed_tokens.weight"]
        return head.sourcing.names[0]

    def _attention(self, prefix: str, flat: mx.array, length: int) -> Work[mx.array]:
        """Return what is added to the states ``[tokens, hidden]`` of sequences of *length* for attention."""
        normed = self._normed(f"{prefix}.input_layernorm", flat, self._eps)
        grouped = isinstance(self.arch.attention, GroupedQueryAttention)
        attended = yield from (self._grouped if grouped else self._latent)(f"{prefix}.self_attn", normed, length)
        (made,) = yield from self._times([f"{prefix}.self_attn.o_proj"], attended)
        return made

    def _grouped(self, prefix: str, x: mx.array, length: int) -> Work[mx.array]:
        """Return what the heads give for *x* ``[tokens, hidden]``, before they are put together."""
        attention = self.arch.attention
        assert isinstance(attention, GroupedQueryAttention)

        def heads_of(name: str, made: mx.array, count: int) -> mx.array:
            made = heads_apart(made, length, count)
            if self.arch.qk_norm and name != "v":
                made = self._normed(f"{prefix}.{name}_norm", made, self._eps)
            return made if name == "v" else self._rotary.turned(made)

        q, k, v = yield from self._times([f"{prefix}.{name}_proj" for name in ("q", "k", "v")], x)
        queries = heads_of("q", q, attention.head_count)
        keys, values = heads_of("k", k, attention.kv_head_count), heads_of("v", v, attention.kv_head_count)
        scale = attention.head_dim**-0.5 * self._rotary.score_scale
        return (yield from attend(queries, keys, values, scale=scale, products=self._products))

    def _latent(self, prefix: str, x: mx.array, length: int) -> Work[mx.array]:
        """Return what the heads of DeepSeek's latent attention give, keys and values taken out of the latent."""
        attention = self.arch.attention
        assert not isinstance(attention, GroupedQueryAttention)
        heads, nope, rope = attention.head_count, attention.nope_head_dim, attention.rope_head_dim
        asking = "q_proj" if attention.q_lora_rank is None else "q_a_proj"
        queries, both = yield from self._times([f"{prefix}.{asking}", f"{prefix}.kv_a_proj_with_mqa"], x)
        if attention.q_lora_rank is not None:
            inner = self._normed(f"{prefix}.q_a_layernorm", queries, _LATENT_EPS)
            (queries,) = yield from self._times([f"{prefix}.q_b_proj"], inner)
        queries = heads_apart(queries, length, heads)
        latent = self._normed(f"{prefix}.kv_a_layernorm", both[:, : attention.kv_lora_rank], _LATENT_EPS)
        turned = self._rotary.turned(heads_apart(both[:, attention.kv_lora_rank :], length, 1))
        keys, values = yield from self._from_latent(prefix, latent, length)
        queries = mx.concatenate([queries[..., :nope], self._rotary.turned(queries[..., nope:])], axis=-1)
        keys = mx.concatenate([keys, mx.broadcast_to(turned, (*keys.shape[:-1], rope))], axis=-1)
        scale = (nope + rope) ** -0.5 * self._rotary.score_scale
        return (yield from attend(queries, keys, values, scale=scale, products=self._products))

    def _from_latent(self, prefix: str, latent: mx.array, length: int) -> Work[tuple[mx.array, mx.array]]:
        """Return keys and values of all heads, ``[sequences, heads, length, columns]``."""
        tensors = [self._tensors[f"{prefix}.{name}.weight"] for name in ("embed_q", "unembed_out")]
        names, heads = [tensor.sourcing.names[0] for tensor in tensors], tensors[0].shape[0]
        if names[0] == names[1]:
            # One matrix of each head's rows for keys, and then those for values.
            (both,) = yield from self._products.times(names[:1], latent)
            both, nope = heads_apart(both, length, heads), tensors[0].shape[2]
            return both[..., :nope], both[..., nope:]
        keys, values = yield from self._products.times_heads((names[0], names[1]), latent)
        return heads_apart(keys, length, heads), heads_apart(values, length, heads)

    def _mlp(self, prefix: str, x: mx.array) -> Work[mx.array]:
        if f"{prefix}.gate.weight" not in self._tensors:
            return (yield from self._gated(prefix, x))
        shared = f"{prefix}.shared_experts"
        opening = [f"{shared}.gate_proj", f"{shared}.up_proj"] if f"{shared}.gate_proj.weight" in self._tensors else []
        logits, *opened = yield from self._times([f"{prefix}.gate", *opening], x)
        bias = self._vector(f"{prefix}.gate.e_score_correction_bias")
        routing = Routing.of(self._config, logits=logits, bias=bias)
        mixed = yield from mix_experts(x, routing, self._products, partial(self._names, f"{prefix}.switch_mlp"))
        if opened:
            (given,) = yield from self._times([f"{shared}.down_proj"], gated(*opened))
            mixed = mixed + given
        return mixed

    def _gated(self, prefix: str, x: mx.array) -> Work[mx.array]:
        gate, up = yield from self._times([f"{prefix}.gate_proj", f"{prefix}.up_proj"], x)
        (down,) = yield from self._times([f"{prefix}.down_proj"], gated(gate, up))
        return down

    def _names(self, prefix: str, expert: int) -> tuple[str, str, str]:
        """Return the source's names of one expert's three matrices."""
        gate, up, down = (
            self._tensors[f"{prefix}.{name}_proj.weight"].sourcing.names[expert] for name in ("gate", "up", "down")
        )
        return gate, up, down

    def _times(self, paths: Sequence[str], x: mx.array) -> Work[list[mx.array]]:
        """Return the products of *x* ``[tokens, columns]`` with the matrices at *paths*, and their biases."""
        names = [self._tensors[f"{path}.weight"].sourcing.names[0] for path in paths]
        made = yield from self._products.times(names, x)
        biases = [f"{path}.bias" for path in paths]
        return [
            one + self._vector(bias) if bias in self._tensors else one for one, bias in zip(made, biases, strict=True)
        ]

    def _normed(self, path: str, x: mx.array, eps: float) -> mx.array:
        result: mx.array = mx.fast.rms_norm(x, self._vector(f"{path}.weight"), eps)
        return result

    def _vector(self, name: str) -> mx.array:
        tensor: OutputTensor = self._tensors[name]
        return self._rows.rows(tensor.sourcing.names[0], 0, prod(tensor.shape))


def models_at_once(arch: ArchSpec, token_count: int, model_count: int, room_bytes: int) -> int:
    """Return how many of *model_count* models may go through a block at once, in *room_bytes* for what tokens take."""
    spare_bytes = room_bytes - bytes_per_token(arch, model_count) * token_count
    attention = arch.attention
    if isinstance(attention, GroupedQueryAttention):
        attending = 3 * (attention.head_count + attention.kv_head_count) * attention.head_dim
    else:
        keys = attention.nope_head_dim + attention.rope_head_dim
        attending = attention.head_count * (2 * keys + attention.nope_head_dim + 2 * attention.value_head_dim)
    # What a model keeps that waits for products: states on their way, and what heads or the gate make of them.
    waiting = 4 * arch.hidden_size + max(attending, 3 * arch.intermediate_size)
    return min(1 + max(spare_bytes, 0) // (_VALUE_BYTES * waiting * token_count), model_count)


def needed_bytes(arch: ArchSpec, token_count: int, model_count: int, block_bytes: int = DEFAULT_BLOCK_BYTES) -> int:
    """Return about what the passages of *model_count* models side by side take beside Python and its libraries."""
    return bytes_per_token(arch, model_count) * token_count + _BLOCKS_AT_PEAK * block_bytes


# A block as it is read, taken apart, turned and multiplied.
_BLOCKS_AT_PEAK = 5


def bytes_per_token(arch: ArchSpec, model_count: int) -> int:
    """Return what one token's hidden states, and what a block makes of them on the way, take at the most."""
    attention = arch.attention
    if isinstance(attention, GroupedQueryAttention):
        # Queries before and behind the rotary embedding, scores aside; what the heads give, twice.
        attending = 4 * attention.head_count * attention.head_dim + 4 * attention.kv_head_count * attention.head_dim
    else:
        whole = attention.nope_head_dim + attention.rope_head_dim
        attending = attention.head_count * (5 * whole + 4 * attention.value_head_dim)
    active = arch.experts.active_count if arch.experts else 0
    mixing = active * arch.experts.intermediate_size // 4 if arch.experts else 0
    widest = max(attending, 5 * arch.intermediate_size, mixing)
    return _VALUE_BYTES * ((model_count + 5) * arch.hidden_size + widest)


def _check_known(config: Mapping[str, Any]) -> None:
    """Refuse what mlx-lm computes of a model and this module does not.

    Raises:
        BadCheckpoint: naming it.
    """
    if "sliding_attention" in (config.get("layer_types") or ()) and config.get("sliding_window"):
        raise BadCheckpoint("attention over a sliding window is not computed here")
    if config.get("model_type") == "deepseek_v3" and config.get("topk_method", "noaux_tc") != "noaux_tc":
        raise BadCheckpoint(f"a choice of experts by {config['topk_method']!r} is not computed here")
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise BadCheckpoint(f"the activation {activation!r} is not computed here")
