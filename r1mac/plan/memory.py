"""Memory formulas. Each multiplies shape facts; none asks for a model's name."""

from dataclasses import dataclass
from math import ceil

from r1mac.catalog.arch import ArchSpec, GroupedQueryAttention, LatentAttention

# mlx-lm grows its caches in blocks of this many tokens.
_CACHE_BLOCK_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """MLX's affine format: *bits* a value, and a 16-bit scale and bias for each group."""

    bits: int
    group_size: int = 64

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight takes with its share of scale and bias."""
        return 16.0 if self.bits == 16 else self.bits + 32 / self.group_size  # noqa: PLR2004


def tensor_bytes(shape: tuple[int, ...], quantization: Quantization | None) -> int:
    """Return what one tensor takes: 16-bit values, or packed codes with their scales and biases."""
    values = 1
    for length in shape:
        values *= length
    if quantization is None or quantization.bits == 16:  # noqa: PLR2004
        return 2 * values
    return values * quantization.bits // 8 + 4 * (values // quantization.group_size)


def weight_bytes(arch: ArchSpec, quantization: Quantization) -> int:
    """Return the bytes of all tensors with every matrix at *quantization*, as ``mlx_lm.convert`` makes them.

    A matrix whose rows the group size does not divide stays at 16 bits; so do vectors and routers.
    """
    total = 0
    for count, tensor in arch.counted_tensors:
        if tensor.role == "float32":
            total += 4 * count * tensor.size
        elif tensor.role == "matrix" and tensor.shape[-1] % quantization.group_size == 0:
            total += count * tensor_bytes(tensor.shape, quantization)
        else:
            total += 2 * count * tensor.size
    return total


def kv_bytes_per_token(arch: ArchSpec, *, value_bytes: int = 2) -> int:
    """Return what one more token of context costs over all layers.

    The cache holds ``[layers, tokens, cached_values_per_token]`` values of *value_bytes* each.
    """
    return value_bytes * arch.layer_count * arch.attention.cached_values_per_token


def kv_cache_bytes(arch: ArchSpec, context_tokens: int, *, value_bytes: int = 2) -> int:
    """Return the cache's size at *context_tokens*, in the whole blocks in which it grows."""
    blocks = ceil(context_tokens / _CACHE_BLOCK_TOKENS)
    return kv_bytes_per_token(arch, value_bytes=value_bytes) * blocks * _CACHE_BLOCK_TOKENS


def prefill_scratch_bytes(
    arch: ArchSpec, *, step_tokens: int, context_tokens: int, fused_attention: bool, value_bytes: int = 2
) -> int:
    """Return the most that one prefill step holds beside weights and cache, in values of *value_bytes*.

    The feed-forward term, ``(2 x intermediate + 12.5 x hidden) x step``, was fitted to peaks of six llama
    shapes. Attention adds its score matrix ``heads x step x context`` where it is not fused. MLA always
    holds its scores, twice while the mask is applied (factor 2.13 fits three published peaks of the 671B),
    and the keys and values expanded for one layer.
    """
    step = min(step_tokens, context_tokens)
    values = (2.0 * arch.intermediate_size + 12.5 * arch.hidden_size) * step
    attention = arch.attention
    match attention:
        case LatentAttention():
            values += 2.13 * attention.head_count * step * context_tokens
            values += attention.head_count * (attention.nope_head_dim + attention.value_head_dim) * context_tokens
        case GroupedQueryAttention():
            if not fused_attention:
                values += attention.head_count * step * context_tokens
            values += attention.cached_values_per_token * context_tokens
    return round(value_bytes * values)
