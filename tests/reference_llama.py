"""A llama and qwen2 forward pass in numpy, written from the papers: what the tests compare logits with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def logits(config: Mapping[str, Any], weights: Mapping[str, np.ndarray], token_ids: Sequence[int]) -> np.ndarray:
    """Return float32 logits ``[tokens, vocabulary]`` for *token_ids*, without any cache."""
    hidden = weights["model.embed_tokens.weight"][list(token_ids)]
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        normed = _rms_norm(hidden, weights[prefix + "input_layernorm.weight"], config["rms_norm_eps"])
        hidden = hidden + _attention(config, weights, prefix + "self_attn.", normed)
        normed = _rms_norm(hidden, weights[prefix + "post_attention_layernorm.weight"], config["rms_norm_eps"])
        gate = normed @ weights[prefix + "mlp.gate_proj.weight"].T
        up = normed @ weights[prefix + "mlp.up_proj.weight"].T
        hidden = hidden + (gate / (1 + np.exp(-gate)) * up) @ weights[prefix + "mlp.down_proj.weight"].T
    hidden = _rms_norm(hidden, weights["model.norm.weight"], config["rms_norm_eps"])
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return hidden @ head.T


def _attention(config: Mapping[str, Any], weights: Mapping[str, np.ndarray], prefix: str, x: np.ndarray) -> np.ndarray:
    tokens, head_dim = x.shape[0], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def project(name: str, count: int) -> np.ndarray:
        values = x @ weights[f"{prefix}{name}.weight"].T + weights.get(f"{prefix}{name}.bias", 0)
        return values.reshape(tokens, count, head_dim).transpose(1, 0, 2)

    queries = _rotate(project("q_proj", heads), config["rope_theta"])
    keys = _rotate(project("k_proj", kv_heads), config["rope_theta"]).repeat(heads // kv_heads, axis=0)
    values = project("v_proj", kv_heads).repeat(heads // kv_heads, axis=0)
    scores = queries @ keys.transpose(0, 2, 1) / np.sqrt(head_dim)
    scores = np.where(np.tril(np.ones((tokens, tokens), bool)), scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    mixed = (shares @ values).transpose(1, 0, 2).reshape(tokens, -1)
    return mixed @ weights[prefix + "o_proj.weight"].T


def _rotate(x: np.ndarray, theta: float) -> np.ndarray:
    """Turn each head's vectors by their position: Hugging Face's convention, first half against second half."""
    _, tokens, head_dim = x.shape
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = np.arange(tokens)[:, None] * frequencies[None]
    first, second = x[..., : head_dim // 2], x[..., head_dim // 2 :]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight
