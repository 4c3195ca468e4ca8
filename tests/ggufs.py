"""Small GGUF files made on the spot, as llama.cpp's converter would write them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGML_QUANT_SIZES, ExpertGatingFuncType, GGMLQuantizationType, GGUFWriter, RopeScalingType, quants

from tests.checkpoints import DEEPSEEK_V3, R1_TEMPLATE

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
GGUF_QWEN3 = {**GGUF_LLAMA, "model_type": "qwen3", "rope_theta": 1e6}
GGUF_DEEPSEEK = {
    **DEEPSEEK_V3,
    "vocab_size": 261,
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "moe_intermediate_size": 256,
    "intermediate_size": 256,
    "kv_lora_rank": 256,
    "q_lora_rank": 256,
    "torch_dtype": "float32",
    "rope_scaling": {
        "type": "yarn",
        "factor": 40.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
    "max_position_embeddings": 163840,
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
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.embed_q": "attn_k_b",
    "self_attn.unembed_out": "attn_v_b",
    "mlp.gate": "ffn_gate_inp",
    "mlp.switch_mlp.gate_proj": "ffn_gate_exps",
    "mlp.switch_mlp.up_proj": "ffn_up_exps",
    "mlp.switch_mlp.down_proj": "ffn_down_exps",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permute_for_rope(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder query or key rows as llama.cpp's converter does for llama models (its ``permute``)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def with_experts_stacked(config: Mapping[str, Any], weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Return a DeepSeek's weights with each layer's experts as one tensor, as llama.cpp's converter merges them."""
    stacked = {name: array for name, array in weights.items() if ".mlp.experts." not in name}
    for name in weights:
        if ".mlp.experts.0." in name:
            experts = [weights[name.replace("experts.0", f"experts.{i}")] for i in range(config["n_routed_experts"])]
            stacked[name.replace("experts.0", "switch_mlp")] = mx.stack(experts)
    return stacked


def with_latents_split(config: Mapping[str, Any], weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Return a DeepSeek's weights with kv_b_proj in llama.cpp's two halves: attn_k_b (transposed) and attn_v_b."""
    split = {name: array for name, array in weights.items() if "kv_b_proj" not in name}
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    for name in weights:
        if "kv_b_proj" in name:
            per_head = weights[name].reshape(heads, nope + config["v_head_dim"], config["kv_lora_rank"])
            split[name.replace("kv_b_proj", "embed_q")] = mx.contiguous(per_head[:, :nope].swapaxes(1, 2))
            split[name.replace("kv_b_proj", "unembed_out")] = mx.contiguous(per_head[:, nope:])
    return split


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
    split_tensors: int = 0,
) -> dict[str, np.ndarray]:
    """Write *weights* (Hugging Face names) to a GGUF file, matrices in the format *kind*.

    With *split_tensors* the model is written in parts of so many tensors, named as llama.cpp names them. Returns
    what each tensor holds afterwards, dequantised, under its Hugging Face name and in its order of rows.
    """
    arch, rng = config["model_type"], np.random.default_rng(0)
    writer = GGUFWriter(
        str(path),
        {"deepseek_v3": "deepseek2"}.get(arch, arch),
        split_max_tensors=split_tensors,
        small_first_shard=False,
    )
    _write_shape(writer, config)
    if arch == "deepseek_v3":
        _write_latent_shape(writer, config, in_halves=any("embed_q" in name for name in weights))
    _write_tokenizer(writer, config["vocab_size"])
    if extra is not None:
        extra(writer)
    truth = {}
    for name, array in weights.items():
        values = np.array(array.astype(mx.float32))
        heads = _permuted_heads(name, config) if arch == "llama" else 0
        stored = permute_for_rope(values, heads) if heads else values
        tensor_kind = _kind_of(name, values, kind)
        data = encode(stored, tensor_kind, rng)
        writer.add_tensor(_gguf_name(name), data, raw_dtype=tensor_kind)
        back = quants.dequantize(data, tensor_kind)
        truth[name] = _undo(back, heads) if heads else back
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return truth


def _kind_of(name: str, values: np.ndarray, kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """Return the format of a tensor: llama.cpp keeps vectors, routers and rows that a format does not divide wide."""
    is_wide = values.ndim == 1 or name.endswith("mlp.gate.weight") or values.shape[-1] % GGML_QUANT_SIZES[kind][0]
    return GGMLQuantizationType.F32 if is_wide else kind


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
    if rest == "mlp.gate.e_score_correction_bias":
        return f"blk.{index}.exp_probs_b.bias"
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
    if (scaling := config.get("rope_scaling")) is not None:
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        if "attn_factor" in scaling:
            writer.add_rope_scaling_yarn_attn_factor(scaling["attn_factor"])


def _write_latent_shape(writer: GGUFWriter, config: Mapping[str, Any], *, in_halves: bool) -> None:
    """Write what llama.cpp's converter writes for DeepSeek: of MLA as a whole (early 2025), or of its halves."""
    key, value = config["qk_nope_head_dim"] + config["qk_rope_head_dim"], config["v_head_dim"]
    if in_halves:
        writer.add_key_length(config["kv_lora_rank"] + config["qk_rope_head_dim"])
        writer.add_value_length(config["kv_lora_rank"])
        writer.add_key_length_mla(key)
        writer.add_value_length_mla(value)
    else:
        writer.add_key_length(key)
        writer.add_value_length(value)
    writer.add_rope_dimension_count(config["qk_rope_head_dim"])
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(ExpertGatingFuncType[config["scoring_func"].upper()])
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    writer.add_rope_scaling_yarn_log_mul(0.1 * config["rope_scaling"]["mscale_all_dim"])


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
    *rows, columns = shape
    block_bytes = {GGMLQuantizationType.Q4_K: 144, GGMLQuantizationType.Q6_K: 210}[kind]
    blocks = rng.integers(0, 256, (*rows, columns // 256, block_bytes), dtype=np.uint8)
    scale = np.float16(0.001).tobytes()
    # Both formats keep their float16 scales in a fixed place; random bits there could be NaN.
    places = [0, 2] if kind == GGMLQuantizationType.Q4_K else [208]
    for place in places:
        blocks[..., place : place + 2] = np.frombuffer(scale, dtype=np.uint8)
    return blocks.reshape(*rows, -1)
