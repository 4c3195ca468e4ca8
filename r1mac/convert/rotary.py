"""Rotary position embeddings by config.json, for a text's first tokens.

The formulas are those of transformers' ``modeling_rope_utils`` (llama3: Llama 3.1; yarn: arXiv 2309.00071, with
DeepSeek's two scales) in the form that ``mx.fast.rope`` takes: wavelengths over 2 pi, by which positions are divided.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from r1mac.errors import BadCheckpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """How vectors are turned by their position.

    Attributes:
        frequencies: ``[dims / 2]``, what positions are divided by.
        traditional: neighbours are turned together, and not halves.
        input_scale: what vectors are multiplied with first.
        score_scale: what attention scores are multiplied with for it.
    """

    frequencies: mx.array
    traditional: bool
    input_scale: float = 1.0
    score_scale: float = 1.0

    def turned(self, x: mx.array) -> mx.array:
        """Return *x* ``[..., tokens, dims]`` turned, the first token at position 0."""
        scaled = x if self.input_scale == 1 else x * self.input_scale
        result: mx.array = mx.fast.rope(
            scaled, x.shape[-1], traditional=self.traditional, base=None, scale=1.0, offset=0, freqs=self.frequencies
        )
        return result


def rotary_of(config: Mapping[str, Any], dims: int) -> Rotary:
    """Return the rotary embedding of a config.json whose settings are flat (``formats.rope``).

    Args:
        config: of llama, qwen2, qwen3 or deepseek_v3.
        dims: how many values of a head are turned.

    Raises:
        BadCheckpoint: of a kind that is not computed here.
    """
    latent = config.get("model_type") == "deepseek_v3"
    base = float(config.get("rope_theta") or 10_000)
    traditional = latent or bool(config.get("rope_traditional", False))
    plain = mx.power(base, mx.arange(0, dims, 2, dtype=mx.float32) / dims)
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("type") or scaling.get("rope_type") or "default"
    match kind:
        case "default":
            return Rotary(frequencies=plain, traditional=traditional)
        case "linear":
            return Rotary(frequencies=plain * scaling["factor"], traditional=traditional)
        case "llama3":
            return Rotary(frequencies=_llama3(plain, scaling), traditional=traditional)
        case "yarn" | "deepseek_yarn":
            return _yarn(plain, base, scaling, traditional=traditional, latent=latent)
    raise BadCheckpoint(f"rotary embeddings of the kind {kind!r} are not computed here")


def _llama3(plain: mx.array, scaling: Mapping[str, Any]) -> mx.array:
    factor, known = scaling["factor"], scaling.get("original_max_position_embeddings", 8192)
    low, high = scaling.get("low_freq_factor", 1.0), scaling.get("high_freq_factor", 4.0)
    wavelengths = 2 * mx.pi * plain
    smooth = (known / wavelengths - low) / (high - low)
    between = plain / ((1 - smooth) / factor + smooth)
    long = mx.where(wavelengths > known / low, plain * factor, plain)
    return mx.where((wavelengths > known / high) & (wavelengths < known / low), between, long)


def _yarn(plain: mx.array, base: float, scaling: Mapping[str, Any], *, traditional: bool, latent: bool) -> Rotary:
    factor, dims = float(scaling.get("factor", 1.0)), 2 * plain.size
    known = scaling.get("original_max_position_embeddings", 4096)

    def dimension_of(rotations: float) -> float:
        return dims * math.log(known / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension_of(scaling.get("beta_fast", 32))), 0)
    high = min(math.ceil(dimension_of(scaling.get("beta_slow", 1))), dims - 1)
    ramp = mx.clip((mx.arange(dims // 2, dtype=mx.float32) - low) / max(high - low, 0.001), 0, 1)
    # Slow dimensions are interpolated, fast ones are left, and between the two is a ramp.
    frequencies = factor * plain / (factor * (1 - ramp) + ramp)
    whole = scaling.get("mscale_all_dim", 0)
    score = _yarn_scale(factor, whole) ** 2 if latent and whole else 1.0
    return Rotary(
        frequencies=frequencies,
        traditional=traditional,
        input_scale=_yarn_scale(factor, scaling.get("mscale", 1)) / _yarn_scale(factor, whole),
        score_scale=score,
    )


def _yarn_scale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
