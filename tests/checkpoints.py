"""Small checkpoints made on the spot: random weights in the shape of every architecture, with a real tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from r1mac.catalog.arch import parse_arch

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 1,
}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True}
QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}
DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_hidden_layers": 3,
    "hidden_size": 256,
    "intermediate_size": 384,
    "moe_intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "vocab_size": 320,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "deepseek_v3": DEEPSEEK_V3,
}

R1_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
SPECIAL_TOKENS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]


def hub_weights(config: Mapping[str, Any], *, seed: int = 0) -> dict[str, mx.array]:
    """Return random weights under the names that the Hub has: experts one by one, MLA's kv_b_proj whole."""
    mx.random.seed(seed)
    weights: dict[str, mx.array] = {}
    for tensor in parse_arch(config).tensors:
        values = mx.random.normal(tensor.shape) * 0.1
        if tensor.name.endswith(("layernorm.weight", "norm.weight")):
            values = values + 1
        values = values if tensor.role == "float32" else values.astype(mx.bfloat16)
        if ".switch_mlp." in tensor.name:
            for index in range(tensor.shape[0]):
                weights[tensor.name.replace("switch_mlp", f"experts.{index}")] = values[index]
        elif tensor.name.endswith("embed_q.weight"):
            heads, rank, nope = tensor.shape
            rows = heads * (nope + config["v_head_dim"])
            kv_b = (mx.random.normal((rows, rank)) * 0.1).astype(mx.bfloat16)
            weights[tensor.name.replace("embed_q", "kv_b_proj")] = kv_b
        elif not tensor.name.endswith("unembed_out.weight"):
            weights[tensor.name] = values
    return weights


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], *, weights: Mapping[str, mx.array] | None = None, shard_count: int = 2
) -> Path:
    """Write a checkpoint as the Hub has it: config, weights in shards with an index, tokenizer. Return *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(hub_weights(config) if weights is None else weights)
    names = list(weights)
    weight_map = {}
    for index in range(shard_count):
        file_name = f"model-{index + 1:05}-of-{shard_count:05}.safetensors"
        shard = {name: weights[name] for name in names[index::shard_count]}
        mx.save_safetensors(str(folder / file_name), shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file_name)
    index_data = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_data), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path, *, template: str = R1_TEMPLATE, think_tokens: bool = True) -> None:
    """Write a byte-level tokenizer of 256 bytes and R1's special tokens, with a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [SPECIAL_TOKENS[0], SPECIAL_TOKENS[1], *alphabet]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    if think_tokens:
        tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[1],
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def to_block_fp8(weight: mx.array) -> tuple[mx.array, mx.array]:
    """Return uint8 codes of float8_e4m3fn and a float32 scale for each block of 128 x 128."""
    rows, columns = weight.shape
    padded = mx.pad(weight.astype(mx.float32), [(0, -rows % 128), (0, -columns % 128)])
    blocks = padded.reshape(padded.shape[0] // 128, 128, padded.shape[1] // 128, 128)
    scales = mx.maximum(mx.abs(blocks).max(axis=(1, 3)), 1e-6) / 448
    codes = mx.to_fp8((blocks / scales[:, None, :, None]).reshape(padded.shape))
    return codes[:rows, :columns], scales


def write_fp8_checkpoint(folder: Path, config: Mapping[str, Any], *, mtp: bool = True) -> Path:
    """Write a checkpoint whose projections are block FP8, as DeepSeek publishes the 671B, with an MTP layer or not."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = hub_weights(config)
    last = config["num_hidden_layers"]
    if mtp:
        weights[f"model.layers.{last}.enorm.weight"] = mx.ones((4,)).astype(mx.bfloat16)
    raw: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, values in weights.items():
        if name.endswith(("_proj.weight", "_proj_with_mqa.weight")):
            codes, scales = to_block_fp8(values)
            raw[name] = ("F8_E4M3", tuple(codes.shape), np.array(codes).tobytes())
            raw[f"{name}_scale_inv"] = ("F32", tuple(scales.shape), np.array(scales).tobytes())
        elif values.dtype == mx.bfloat16:
            raw[name] = ("BF16", tuple(values.shape), np.array(values.view(mx.uint16)).tobytes())
        else:
            raw[name] = ("F32", tuple(values.shape), np.array(values).tobytes())
    header, offset, data = {}, 0, []
    for name, (dtype, shape, content) in raw.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(content)]}
        offset += len(content)
        data.append(content)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": fp8}), encoding="utf-8")
    write_tokenizer(folder)
    return folder
