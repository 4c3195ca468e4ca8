"""Small GGUF files made on the spot, as llama.cpp's converter would write them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants

from tests.checkpoints import R1_TEMPLATE

# A matrix of 256 columns holds a whole super-block of the K formats.
GGUF_LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 261,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
GGUF_QWEN2 = {**GGUF_LLAMA, "model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1e6}

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permute_for_rope(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder query or key rows as llama.cpp's converter does for llama models (its ``permute``)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def encode(values: np.ndarray, kind: GGMLQuantizationType, rng: np.random.Generator) -> np.ndarray:
    """Return *values* in a ggml format; the K formats, which the library only reads, get random valid blocks."""
    if kind in {GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K}:
        return _random_k_blocks(values.shape, kind, rng)
    if kind == GGMLQuantizationType.F32:
        return values.astype(np.float32)
    return quants.quantize(values.astype(np.float32), kind)


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, mx.array],
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    extra: Callable[[GGUFWriter], None] | None = None,
) -> dict[str, np.ndarray]:
    """Write *weights* (Hugging Face names) to a GGUF file, matrices in the format *kind*.

    Returns what each tensor holds afterwards, dequantised, under its Hugging Face name and in its order of rows.
    """
    arch, rng = config["model_type"], np.random.default_rng(0)
    writer = GGUFWriter(str(path), arch)
    _write_shape(writer, config)
    _write_tokenizer(writer, config["vocab_size"])
    if extra is not None:
        extra(writer)
    truth = {}
    for name, array in weights.items():
        values = np.array(array.astype(mx.float32))
        heads = _permuted_heads(name, config) if arch == "llama" else 0
        stored = permute_for_rope(values, heads) if heads else values
        tensor_kind = kind if values.ndim == 2 else GGMLQuantizationType.F32
        data = encode(stored, tensor_kind, rng)
        writer.add_tensor(_gguf_name(name), data, raw_dtype=tensor_kind)
        back = quants.dequantize(data, tensor_kind)
        truth[name] = _undo(back, heads) if heads else back
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return truth


def _undo(rows: np.ndarray, heads: int) -> np.ndarray:
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _permuted_heads(name: str, config: Mapping[str, Any]) -> int:
    if name.endswith("q_proj.weight"):
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if name.endswith("k_proj.weight") else 0


def _gguf_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, _, index, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{index}.{_PARTS[part]}.{kind}"


def _write_shape(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])


def _write_tokenizer(writer: GGUFWriter, vocab_size: int, *, pre: str = "qwen2") -> None:
    from tokenizers import pre_tokenizers

    special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<think>", "</think>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    assert len(tokens) == vocab_size
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 4, 4] + [1] * (vocab_size - 4))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template(R1_TEMPLATE)


def _random_k_blocks(shape: tuple[int, ...], kind: GGMLQuantizationType, rng: np.random.Generator) -> np.ndarray:
    rows, columns = shape
    block_bytes = {GGMLQuantizationType.Q4_K: 144, GGMLQuantizationType.Q6_K: 210}[kind]
    blocks = rng.integers(0, 256, (rows, columns // 256, block_bytes), dtype=np.uint8)
    scale = np.float16(0.001).tobytes()
    # Both formats keep their float16 scales in a fixed place; random bits there could be NaN.
    places = [0, 2] if kind == GGMLQuantizationType.Q4_K else [208]
    for place in places:
        blocks[..., place : place + 2] = np.frombuffer(scale, dtype=np.uint8)
    return blocks.reshape(rows, -1)
