"""config.json from a GGUF file's metadata."""

import math
from typing import Any

from r1mac.convert.gguf_latent import latent_attention_config
from r1mac.errors import BadCheckpoint
from r1mac.formats.gguf import GGUFFile

# ggml's name: model type and class as config.json has them.
ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "deepseek2": ("deepseek_v3", "DeepseekV3ForCausalLM"),
}

# (factor, low_freq_factor, high_freq_factor, original context): the only settings published models have.
_LLAMA3_ROPES = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192))


def build_config(file: GGUFFile, *, tied: bool) -> dict[str, Any]:
    """Return the config.json of a model.

    Args:
        file: the GGUF file.
        tied: whether it has no output matrix of its own.

    Raises:
        BadCheckpoint: a field is missing, or its rotary embedding is of a kind that r1mac does not know.
    """
    model_type, class_name = ARCHITECTURES[file.architecture]
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "num_hidden_layers": layer_count(file),
        "hidden_size": file.required("embedding_length"),
        "intermediate_size": file.required("feed_forward_length"),
        "num_attention_heads": file.required("attention.head_count"),
        "vocab_size": _vocab_size(file),
        "max_position_embeddings": file.required("context_length"),
        "rope_theta": float(file.get("rope.freq_base", 10000.0)),
        "rms_norm_eps": float(f"{file.required('attention.layer_norm_rms_epsilon', float):.6g}"),
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
    }
    config |= latent_attention_config(file) if file.architecture == "deepseek2" else _grouped_query_config(file, config)
    for key, field in (("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id")):
        if (token_id := file.metadata.get(f"tokenizer.ggml.{field}")) is not None:
            config[key] = int(token_id)
    if (scaling := _rope_scaling(file, config)) is not None:
        config["rope_scaling"] = scaling
    return config


def layer_count(file: GGUFFile) -> int:
    """Return the layers of the model itself, without those that predict further tokens."""
    return int(file.required("block_count")) - int(file.get("nextn_predict_layers", 0))


def _grouped_query_config(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any]:
    head_count, hidden_size = config["num_attention_heads"], config["hidden_size"]
    fields: dict[str, Any] = {
        "num_key_value_heads": int(file.get("attention.head_count_kv", head_count)),
        "head_dim": int(file.get("attention.key_length", hidden_size // head_count)),
    }
    if file.architecture == "llama":
        fields["mlp_bias"] = any(name.endswith("ffn_up.bias") for name in file.tensors)
    if file.architecture in {"llama", "qwen3"}:
        fields["attention_bias"] = any(name.endswith("attn_q.bias") for name in file.tensors)
    return fields


def llama3_rope_factors(
    *, head_dim: int, rope_theta: float, factor: float, low: float, high: float, original_context_tokens: int
) -> list[float]:
    """Return by what each frequency of a llama3-scaled rotary embedding is divided.

    Source: Meta's published formula for Llama 3.1, as in transformers' ``_compute_llama3_parameters``.
    """
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope_theta ** (index / head_dim)
        turns = original_context_tokens / wavelength
        if turns < low:
            factors.append(factor)
        elif turns > high:
            factors.append(1.0)
        else:
            smooth = (turns - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def _vocab_size(file: GGUFFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise BadCheckpoint(f"{file.path.name} has no token_embd.weight", hint="fetch the file again")
    return embedding.shape[0]


def _rope_scaling(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any] | None:
    if "rope_freqs.weight" in file.tensors:
        return _match_llama3(file, config)
    kind = file.get("rope.scaling.type", "none")
    factor = float(file.get("rope.scaling.factor", 1.0))
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return {"type": "linear", "factor": factor}
    if kind == "yarn":
        original = file.get("rope.scaling.original_context_length", config["max_position_embeddings"])
        return {"type": "yarn", "factor": factor, "original_max_position_embeddings": int(original), **_yarn(file)}
    raise BadCheckpoint(
        f"{file.path.name} scales its rotary embedding by {kind!r}, which r1mac does not know",
        hint="convert the original weights instead",
    )


def _yarn(file: GGUFFile) -> dict[str, float]:
    """Return YaRN's further settings, where the file has them.

    ``yarn_log_multiplier`` is 0.1 x ``mscale_all_dim``: the 0.1 of YaRN's formula, which config.json leaves to the
    program, is in the file. Every published DeepSeek model has one number for both of its mscales.
    """
    names = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "yarn_attn_factor": "attn_factor"}
    found = {
        name: float(f"{file.get(f'rope.scaling.{key}'):.6g}")
        for key, name in names.items()
        if file.get(f"rope.scaling.{key}") is not None
    }
    if (log_multiplier := file.get("rope.scaling.yarn_log_multiplier")) is not None:
        mscale = float(f"{log_multiplier * 10:.6g}")
        found |= {"mscale": mscale, "mscale_all_dim": mscale}
    return found


def _match_llama3(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any]:
    """Find the llama3 settings whose factors a file holds: GGUF keeps the factors and drops the settings."""
    tensor = file.tensors["rope_freqs.weight"]
    found = tensor.rows(0, tensor.shape[0]).tolist()
    for factor, low, high, original in _LLAMA3_ROPES:
        expected = llama3_rope_factors(
            head_dim=config["head_dim"],
            rope_theta=config["rope_theta"],
            factor=factor,
            low=low,
            high=high,
            original_context_tokens=original,
        )
        if len(found) == len(expected) and all(
            math.isclose(a, b, rel_tol=1e-4) for a, b in zip(found, expected, strict=True)
        ):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise BadCheckpoint(
        f"the rotary factors in {file.path.name} (rope_freqs.weight) are not those of any known Llama 3 model",
        hint="convert the original weights instead",
    )
