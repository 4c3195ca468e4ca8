"""Which tensors of a source make one tensor of the MLX model. Pure: names in, names out."""

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

_EXPERT_STACK = re.compile(r"^(model\.layers\.\d+\.mlp)\.switch_mlp\.(gate_proj|up_proj|down_proj)\.weight$")
_LATENT_HALF = re.compile(r"^(model\.layers\.\d+\.self_attn)\.(embed_q|unembed_out)\.weight$")


@dataclass(frozen=True, slots=True)
class Sourcing:
    """How one tensor of the MLX model is made.

    Attributes:
        kind: ``same`` takes one tensor as it is; ``stack`` puts the experts' matrices on a new first axis;
            ``keys`` and ``values`` take one half of MLA's ``kv_b_proj``, the former transposed.
        names: the source tensors, in order.
    """

    kind: Literal["same", "stack", "keys", "values"]
    names: tuple[str, ...]


def sourcing_of(name: str, available: Container[str], *, expert_count: int) -> Sourcing:
    """Return how the tensor *name* of the MLX model is made from a source that has the names *available*."""
    if name in available:
        return Sourcing("same", (name,))
    if match := _EXPERT_STACK.match(name):
        prefix, projection = match.groups()
        experts = (f"{prefix}.experts.{index}.{projection}.weight" for index in range(expert_count))
        return Sourcing("stack", tuple(experts))
    if match := _LATENT_HALF.match(name):
        return Sourcing("keys" if match[2] == "embed_q" else "values", (f"{match[1]}.kv_b_proj.weight",))
    return Sourcing("same", (name,))


def expert_name(name: str, number: int) -> str | None:
    """Return the Hub's name of one expert's matrix in the stack *name*; None where that is no stack."""
    match = _EXPERT_STACK.match(name)
    return f"{match[1]}.experts.{number}.{match[2]}.weight" if match else None


def unused_names(names: Iterator[str] | list[str], *, layer_count: int, tied_embeddings: bool) -> set[str]:
    """Return which of the source's *names* the MLX model leaves out on purpose.

    Precomputed rotary frequencies, the head of a model that ties it to its embedding, and layers after the
    last one (DeepSeek's multi-token prediction, which gets a file of its own where it is whole).
    """
    return {name for name in names if _is_unused(name, layer_count, tied_embeddings=tied_embeddings)}


def prediction_layers(names: Iterable[str], *, layer_count: int) -> tuple[int, ...]:
    """Return the layers behind the last one that predict further tokens, which DeepSeek's eh_proj tells."""
    found = (re.fullmatch(r"model\.layers\.(\d+)\.eh_proj\.weight", name) for name in names)
    return tuple(sorted(int(match[1]) for match in found if match is not None and int(match[1]) >= layer_count))


def is_behind_last_layer(name: str, layer_count: int) -> bool:
    """Tell whether the tensor *name* is of a layer behind the last of *layer_count*."""
    match = re.match(r"^model\.layers\.(\d+)\.", name)
    return match is not None and int(match[1]) >= layer_count


def _is_unused(name: str, layer_count: int, *, tied_embeddings: bool) -> bool:
    if "rotary_emb.inv_freq" in name or (tied_embeddings and name == "lm_head.weight"):
        return True
    return is_behind_last_layer(name, layer_count)


_GGUF_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_GGUF_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_QUERY_KEY_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
# llama.cpp keeps the experts of a layer as one tensor and, in newer files, MLA's halves as MLX does.
_GGUF_LATENT = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.embed_q",
    "attn_v_b": "self_attn.unembed_out",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.switch_mlp.gate_proj",
    "ffn_up_exps": "mlp.switch_mlp.up_proj",
    "ffn_down_exps": "mlp.switch_mlp.down_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_GGUF_BLOCKS = {
    "llama": _GGUF_BLOCK,
    "qwen2": _GGUF_BLOCK,
    "qwen3": {**_GGUF_BLOCK, **_GGUF_QUERY_KEY_NORMS},
    "deepseek2": _GGUF_LATENT,
}
_GGUF_ROUTER_BIAS = "exp_probs_b.bias"


def from_gguf(name: str, architecture: str = "llama") -> str | None:
    """Return the Hugging Face name of a tensor of a GGUF file, or None if an *architecture* has none such.

    Stacked experts and MLA's halves get the names that MLX gives them.
    """
    if name in _GGUF_TOP:
        return _GGUF_TOP[name]
    match = re.match(r"^blk\.(\d+)\.([a-z_]+)\.(weight|bias)$", name)
    block = _GGUF_BLOCKS[architecture]
    if match is None:
        return None
    if architecture == "deepseek2" and name.endswith(f".{_GGUF_ROUTER_BIAS}"):
        return f"model.layers.{match[1]}.mlp.gate.e_score_correction_bias"
    return f"model.layers.{match[1]}.{block[match[2]]}.{match[3]}" if match[2] in block else None
