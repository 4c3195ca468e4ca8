"""The tiny model: DeepSeek-V3's architecture in numpy, for training. Names of weights are those of the Hub."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator

from scripts.tiny.attention import Heads, attend
from scripts.tiny.experts import Choice, mix
from scripts.tiny.tape import (
    Array,
    Flags,
    Ids,
    Tape,
    Value,
    add,
    beside,
    cross_entropy,
    embed,
    gated,
    linear,
    rms_norm,
    split,
    take,
)

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 1024,
    },
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# As in DeepSeek-V3's report, whose larger model takes 0.3 and then 0.1.
PREDICTION_WEIGHT = 0.2


class Batch(NamedTuple):
    """Conversations of one length, padded at the end.

    Attributes:
        ids: ``[rows, length]``.
        weights: how much each token counts when it is to be predicted, ``[rows, length]``.
        lengths: without padding, ``[rows]``.
    """

    ids: Ids
    weights: Array
    lengths: Ids


class Losses(NamedTuple):
    """What a batch showed.

    Attributes:
        loss: cross-entropy of the next token.
        right: the share of next tokens that the model ranks first.
        second_loss, second_right: likewise of the token after it, by the prediction layer.
        loads: of each layer with experts, by its number: the share of its choices that each expert got.
    """

    loss: float
    right: float
    second_loss: float
    second_right: float
    loads: dict[int, Array]


class TinyModel:
    """Weights, and what they make of a batch.

    Args:
        config: as config.json has it.
        weights: float32, by name; experts are stacked as ``opening`` and ``closing``.
        biases: the routers' corrections, by layer.
    """

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Array], biases: Mapping[int, Array]) -> None:
        self.config = config
        self.weights = {name: Value(values) for name, values in weights.items()}
        self.biases = dict(biases)
        scaling = config["rope_scaling"]
        self._heads = Heads(
            count=config["num_attention_heads"],
            nope=config["qk_nope_head_dim"],
            rope=config["qk_rope_head_dim"],
            value=config["v_head_dim"],
            theta=config["rope_theta"],
            factor=scaling["factor"],
            original_tokens=scaling["original_max_position_embeddings"],
            beta_fast=scaling["beta_fast"],
            beta_slow=scaling["beta_slow"],
            mscale_all_dim=scaling["mscale_all_dim"],
        )
        self._choice = Choice(
            count=config["n_routed_experts"],
            active=config["num_experts_per_tok"],
            groups=config["n_group"],
            active_groups=config["topk_group"],
            scale=config["routed_scaling_factor"],
        )

    def learn_from(self, batch: Batch) -> Losses:
        """Compute the losses of *batch* and leave their gradients in ``weights``."""
        tape = Tape()
        loads: dict[int, Array] = {}
        state, second = self._states(tape, batch, loads)
        first = self._score(tape, state, batch, ahead=1, share=1.0)
        ahead = self._score(tape, second, batch, ahead=2, share=PREDICTION_WEIGHT)
        tape.backward()
        return Losses(*first, *ahead, loads)

    def guesses(self, batch: Batch) -> tuple[Ids, Ids, dict[int, Array]]:
        """Return, after each token, the likeliest next one and the likeliest one after that, and experts' loads.

        The second guess of a token, by the prediction layer, knows the token that really follows. ``[rows, length]``.
        """
        loads: dict[int, Array] = {}
        head = self.weights["lm_head.weight"].data
        states = self._states(Tape(), batch, loads)
        first, second = ((state.data @ head.T).argmax(axis=1).reshape(batch.ids.shape) for state in states)
        return first, second, loads

    def _states(self, tape: Tape, batch: Batch, loads: dict[int, Array]) -> tuple[Value, Value]:
        """Return what the head makes the next token of, and what it makes the one after it of."""
        (rows, length), ids = batch.ids.shape, batch.ids.ravel()
        is_real = (np.arange(length) < batch.lengths[:, None]).ravel()
        state = embed(tape, self.weights["model.embed_tokens.weight"], ids)
        for index in range(self.config["num_hidden_layers"]):
            state = self._layer(tape, index, state, rows, is_real, loads)
        state = rms_norm(tape, state, self.weights["model.norm.weight"])
        return state, self._predict(tape, state, ids, rows, is_real, loads)

    def _score(self, tape: Tape, state: Value, batch: Batch, *, ahead: int, share: float) -> tuple[float, float]:
        """Return loss and share of right guesses of the tokens *ahead* by that many."""
        rows, length = batch.ids.shape
        counts = np.zeros_like(batch.weights)
        counts[:, :-ahead] = batch.weights[:, ahead:]
        places = np.flatnonzero(counts)
        logits = linear(tape, take(tape, state, places), self.weights["lm_head.weight"])
        targets = batch.ids.ravel()[np.minimum(places + ahead, rows * length - 1)]
        found = cross_entropy(logits, targets, counts.ravel()[places])
        assert logits.grad is not None
        logits.grad *= share
        return found

    def _predict(self, tape: Tape, state: Value, ids: Ids, rows: int, is_real: Flags, loads: dict[int, Array]) -> Value:
        """Return the prediction layer's states: of the model's last state and the token that follows."""
        index = self.config["num_hidden_layers"]
        prefix = f"model.layers.{index}"
        shifted = np.roll(ids.reshape(rows, -1), -1, axis=1).ravel()
        following = embed(tape, self.weights["model.embed_tokens.weight"], shifted)
        both = beside(
            tape,
            rms_norm(tape, following, self.weights[f"{prefix}.enorm.weight"]),
            rms_norm(tape, state, self.weights[f"{prefix}.hnorm.weight"]),
        )
        joined = linear(tape, both, self.weights[f"{prefix}.eh_proj.weight"])
        joined = self._layer(tape, index, joined, rows, is_real, loads)
        return rms_norm(tape, joined, self.weights[f"{prefix}.shared_head.norm.weight"])

    def _layer(self, tape: Tape, index: int, state: Value, rows: int, is_real: Flags, loads: dict[int, Array]) -> Value:
        prefix = f"model.layers.{index}"
        normed = rms_norm(tape, state, self.weights[f"{prefix}.input_layernorm.weight"])
        state = add(tape, state, self._attention(tape, f"{prefix}.self_attn", normed, rows))
        normed = rms_norm(tape, state, self.weights[f"{prefix}.post_attention_layernorm.weight"])
        if index < self.config["first_k_dense_replace"]:
            return add(tape, state, self._gated(tape, f"{prefix}.mlp", normed))
        logits = linear(tape, normed, self.weights[f"{prefix}.mlp.gate.weight"])
        opening, closing = (self.weights[f"{prefix}.mlp.experts.{part}"] for part in ("opening", "closing"))
        routed, chosen = mix(tape, normed, logits, self.biases[index], opening, closing, self._choice)
        counts = np.bincount(chosen[is_real].ravel(), minlength=self._choice.count)
        loads[index] = (counts / counts.sum()).astype(np.float32)
        shared = self._gated(tape, f"{prefix}.mlp.shared_experts", normed)
        return add(tape, state, add(tape, routed, shared))

    def _gated(self, tape: Tape, prefix: str, x: Value) -> Value:
        both = linear(tape, x, self.weights[f"{prefix}.opening"])
        return linear(tape, gated(tape, both), self.weights[f"{prefix}.down_proj.weight"])

    def _attention(self, tape: Tape, prefix: str, x: Value, rows: int) -> Value:
        named = {name: self.weights[f"{prefix}.{name}.weight"] for name in _ATTENTION}
        latent = rms_norm(tape, linear(tape, x, named["q_a_proj"]), named["q_a_layernorm"])
        queries = linear(tape, latent, named["q_b_proj"])
        latent, rotary = split(tape, linear(tape, x, named["kv_a_proj_with_mqa"]), self.config["kv_lora_rank"])
        keys_values = linear(tape, rms_norm(tape, latent, named["kv_a_layernorm"]), named["kv_b_proj"])
        gathered = attend(tape, queries, keys_values, rotary, self._heads, rows)
        return linear(tape, gathered, named["o_proj"])


_ATTENTION = ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")


def new_model(rng: Generator, config: Mapping[str, Any] = CONFIG) -> TinyModel:
    """Return a model with random weights."""
    weights: dict[str, Array] = {}
    for name, shape in weight_shapes(config).items():
        if len(shape) == 1:
            weights[name] = np.ones(shape, np.float32)
        else:
            spread = 0.5 if name.endswith("embed_tokens.weight") else shape[-1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "closing")):
                spread *= (2 * config["num_hidden_layers"]) ** -0.5
            weights[name] = (rng.standard_normal(shape) * spread).astype(np.float32)
    biases = {index: np.zeros(config["n_routed_experts"], np.float32) for index in expert_layers(config)}
    return TinyModel(config, weights, biases)


def expert_layers(config: Mapping[str, Any]) -> range:
    """Return the layers that have experts, the prediction layer included."""
    return range(config["first_k_dense_replace"], config["num_hidden_layers"] + 1)


def weight_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every weight that is learned by gradients, and its shape."""
    hidden, vocabulary, last = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
        f"model.layers.{last}.enorm.weight": (hidden,),
        f"model.layers.{last}.hnorm.weight": (hidden,),
        f"model.layers.{last}.eh_proj.weight": (hidden, 2 * hidden),
        f"model.layers.{last}.shared_head.norm.weight": (hidden,),
    }
    for index in range(last + 1):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in _layer_shapes(config, index).items()}
    return shapes


def _layer_shapes(config: Mapping[str, Any], index: int) -> dict[str, tuple[int, ...]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    q_rank, kv_rank, rope = config["q_lora_rank"], config["kv_lora_rank"], config["qk_rope_head_dim"]
    nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_a_proj.weight": (q_rank, hidden),
        "self_attn.q_a_layernorm.weight": (q_rank,),
        "self_attn.q_b_proj.weight": (heads * (nope + rope), q_rank),
        "self_attn.kv_a_proj_with_mqa.weight": (kv_rank + rope, hidden),
        "self_attn.kv_a_layernorm.weight": (kv_rank,),
        "self_attn.kv_b_proj.weight": (heads * (nope + value), kv_rank),
        "self_attn.o_proj.weight": (hidden, heads * value),
    }
    if index < config["first_k_dense_replace"]:
        return shapes | _gated_shapes("mlp", hidden, config["intermediate_size"])
    experts, inner = config["n_routed_experts"], config["moe_intermediate_size"]
    return (
        shapes
        | _gated_shapes("mlp.shared_experts", hidden, inner * config["n_shared_experts"])
        | {
            "mlp.gate.weight": (experts, hidden),
            "mlp.experts.opening": (experts, 2 * inner, hidden),
            "mlp.experts.closing": (experts, hidden, inner),
        }
    )


def _gated_shapes(prefix: str, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.opening": (2 * inner, hidden), f"{prefix}.down_proj.weight": (hidden, inner)}
