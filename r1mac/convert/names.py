"""Which tensors of a source make one tensor of the MLX model. Pure: names in, names out."""

import re
from collections.abc import Container, Iterator
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


def unused_names(names: Iterator[str] | list[str], *, layer_count: int, tied_embeddings: bool) -> set[str]:
    """Return which of the source's *names* the MLX model leaves out on purpose.

    Precomputed rotary frequencies, the head of a model that ties it to its embedding, and layers after the
    last one (DeepSeek's multi-token prediction).
    """
    return {name for name in names if _is_unused(name, layer_count, tied_embeddings=tied_embeddings)}


def _is_unused(name: str, layer_count: int, *, tied_embeddings: bool) -> bool:
    if "rotary_emb.inv_freq" in name or (tied_embeddings and name == "lm_head.weight"):
        return True
    match = re.match(r"^model\.layers\.(\d+)\.", name)
    return match is not None and int(match[1]) >= layer_count


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


def from_gguf(name: str) -> str | None:
    """Return the Hugging Face name of a llama or qwen2 tensor of a GGUF file, or None if it has none."""
    if name in _GGUF_TOP:
        return _GGUF_TOP[name]
    match = re.match(r"^blk\.(\d+)\.([a-z_]+)\.(weight|bias)$", name)
    if match is None or match[2] not in _GGUF_BLOCK:
        return None
    return f"model.layers.{match[1]}.{_GGUF_BLOCK[match[2]]}.{match[3]}"
