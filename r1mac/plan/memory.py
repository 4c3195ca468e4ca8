"""Memory formulas. Each multiplies shape facts; none asks for a model's name."""

from math import ceil
from typing import NamedTuple

from r1mac.catalog.arch import ArchSpec, GroupedQueryAttention, LatentAttention
from r1mac.plan.activations import step_bytes
from r1mac.plan.latent_blocks import heavy_steps
from r1mac.plan.layer_buffers import ValueTypes

# mlx-lm grows its caches in blocks of this many tokens.
CACHE_BLOCK_TOKENS = 256
# A narrow cache keeps its newest tokens wide, more than so many and at most twice as many, once there are as many:
# they are attended to most (KIVI, arXiv 2402.02750; what that is worth is in docs/lab.md).
_NEWEST_TOKENS = CACHE_BLOCK_TOKENS // 2
# Values of a cached vector that share a scale: 64 would take a sixteenth less at 8 bits, and has twice the error
# (docs/lab.md). A vector whose length it does not divide stays wide.
_KV_GROUP_SIZE = 32
WIDE_BITS = 16


class Quantization(NamedTuple):
    """One of MLX's formats: *bits* a value, and what the values of a group share.

    In mode ``affine`` that is a scale and a bias, both 16 bits wide; in the floating-point modes ``mxfp4``,
    ``nvfp4`` and ``mxfp8`` a scale of 8 bits.
    """

    bits: int
    group_size: int = 64
    mode: str = "affine"

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight takes with its share of scale and bias."""
        if self.bits == 16:  # noqa: PLR2004
            return 16.0
        return self.bits + (32 if self.mode == "affine" else 8) / self.group_size


# Each floating-point mode of MLX has one width and one group size.
FLOAT_WIDTHS = {
    "mxfp4": Quantization(bits=4, group_size=32, mode="mxfp4"),
    "nvfp4": Quantization(bits=4, group_size=16, mode="nvfp4"),
    "mxfp8": Quantization(bits=8, group_size=32, mode="mxfp8"),
}


def tensor_bytes(shape: tuple[int, ...], quantization: Quantization | None, *, value_bytes: int = 2) -> int:
    """Return what one tensor takes: values of *value_bytes*, or packed codes with their scales and biases."""
    values = 1
    for length in shape:
        values *= length
    if quantization is None or quantization.bits == 16:  # noqa: PLR2004
        return value_bytes * values
    shared_bytes = 2 * value_bytes if quantization.mode == "affine" else 1
    return values * quantization.bits // 8 + shared_bytes * (values // quantization.group_size)


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


def kv_group_size(length: int, kv_bits: int) -> int | None:
    """Return how many values of a cached vector of *length* share a scale; None where it is kept wide."""
    return _KV_GROUP_SIZE if kv_bits < WIDE_BITS and length % _KV_GROUP_SIZE == 0 else None


def kv_bytes_per_token(arch: ArchSpec, *, value_bytes: int = 2, kv_bits: int = 16) -> int:
    """Return what one more token of context costs over all layers.

    The cache holds ``[layers, tokens, cached_values_per_token]`` values of *value_bytes* each, or codes of
    *kv_bits* with a scale and a bias of *value_bytes* for each group.
    """
    vectors = _cached_vectors(arch.attention)
    return arch.layer_count * sum(
        count * _cached_vector_bytes(length, value_bytes, kv_bits) for count, length in vectors
    )


def narrow_tokens(tokens: int) -> int:
    """Return how many of a narrow cache's *tokens* are codes: all but the newest, which stay wide."""
    return max(0, ceil(tokens / _NEWEST_TOKENS) - 2) * _NEWEST_TOKENS


def kv_cache_bytes(arch: ArchSpec, context_tokens: int, *, value_bytes: int = 2, kv_bits: int = 16) -> int:
    """Return the cache's size at *context_tokens*, in the whole blocks in which it grows.

    A narrow one keeps a block of the newest tokens wide, and room for codes of all once there are more than these.
    """
    tokens = ceil(context_tokens / CACHE_BLOCK_TOKENS) * CACHE_BLOCK_TOKENS
    if tokens <= CACHE_BLOCK_TOKENS:
        return tokens * kv_bytes_per_token(arch, value_bytes=value_bytes)
    newest = sum(
        count * value_bytes * length
        for count, length in _cached_vectors(arch.attention)
        if kv_group_size(length, kv_bits) is not None
    )
    all_tokens = tokens * kv_bytes_per_token(arch, value_bytes=value_bytes, kv_bits=kv_bits)
    return all_tokens + CACHE_BLOCK_TOKENS * arch.layer_count * newest


def _cached_vectors(attention: GroupedQueryAttention | LatentAttention) -> tuple[tuple[int, int], ...]:
    """Return how many vectors of which length one token adds to a layer's cache."""
    match attention:
        case LatentAttention():
            return ((1, attention.kv_lora_rank), (1, attention.rope_head_dim))
        case GroupedQueryAttention():
            return ((attention.kv_head_count, attention.head_dim),) * 2


def _cached_vector_bytes(length: int, value_bytes: int, kv_bits: int) -> int:
    group_size = kv_group_size(length, kv_bits)
    if group_size is None:
        return value_bytes * length
    return length * kv_bits // 8 + 2 * value_bytes * (length // group_size)


def prefill_scratch_bytes(
    arch: ArchSpec,
    *,
    step_tokens: int,
    context_tokens: int,
    fused_attention: bool,
    value_bytes: int = 2,
    kv_bits: int = 16,
    quantized_weights: bool = False,
) -> int:
    """Return the most that any prompt up to the context makes be held at once, beside weights and cache.

    That is a full step that ends with the context full, as a prompt after a cached one may have it, or the copy that
    the cache makes when it grows. Logits are no part of it: a prefill step evaluates the cache alone, and decoding
    makes them for one token.

    Args:
        arch: the model's shape.
        step_tokens: prompt tokens read at once.
        context_tokens: tokens in the cache after the step.
        fused_attention: whether the kernels are Metal's, which keep no score matrix of ordinary heads.
        value_bytes: of the type that the model computes in.
        kv_bits: width of the cache's values.
        quantized_weights: whether products are with codes; this changes what MLA holds on a CPU.
    """
    types = _value_types(arch, value_bytes, kv_bits, quantized_weights)
    longest = min(step_tokens, context_tokens)
    steps: set[float] = {longest}
    if isinstance(arch.attention, LatentAttention):
        steps |= {min(step, longest) for step in heavy_steps(arch.attention, context_tokens)}
    step = max(
        _step_bytes(arch, types, step_tokens=step, context_tokens=context_tokens, on_gpu=fused_attention)
        for step in steps
    )
    vectors = _cached_vectors(arch.attention)
    copied = max(count * _cached_vector_bytes(length, value_bytes, kv_bits) for count, length in vectors)
    return max(step, copied * max(context_tokens - CACHE_BLOCK_TOKENS, 0))


def prompt_scratch_bytes(
    arch: ArchSpec,
    *,
    step_tokens: int,
    prompt_tokens: int,
    fused_attention: bool,
    value_bytes: int = 2,
    kv_bits: int = 16,
    quantized_weights: bool = False,
) -> int:
    """Return what reading one prompt from its beginning holds beside weights and cache, as it can be measured.

    Its last step is as long as what is left; in its first one the last layer's cache is made after the peak. The
    arguments are those of ``prefill_scratch_bytes``.
    """
    types = _value_types(arch, value_bytes, kv_bits, quantized_weights)
    layer_cache = kv_cache_bytes(arch, prompt_tokens, value_bytes=value_bytes, kv_bits=kv_bits) // arch.layer_count
    rest = prompt_tokens % step_tokens
    return max(
        _step_bytes(arch, types, step_tokens=step, context_tokens=end, on_gpu=fused_attention)
        - (layer_cache if step == end else 0)
        for step, end in ((step_tokens, prompt_tokens - rest), (rest, prompt_tokens))
        if step and end
    )


def _step_bytes(arch: ArchSpec, types: ValueTypes, *, step_tokens: float, context_tokens: int, on_gpu: bool) -> int:
    """Return what a step holds. With a narrow cache it is one of a wide cache until there are codes: it may be more."""
    return max(
        step_bytes(arch, kind, step_tokens=step_tokens, context_tokens=context_tokens, on_gpu=on_gpu)
        for kind in {types, types._replace(kv_bits=WIDE_BITS)}
    )


def _value_types(arch: ArchSpec, value_bytes: int, kv_bits: int, quantized_weights: bool) -> ValueTypes:
    whole_groups = all(kv_group_size(length, kv_bits) for _, length in _cached_vectors(arch.attention))
    return ValueTypes(value_bytes, kv_bits if whole_groups else WIDE_BITS, quantized_weights)
