"""How the attention over DeepSeek's latents is cut, so that its memory does not grow with step times context."""

from math import inf
from typing import NamedTuple

from r1mac.catalog.arch import LatentAttention

# Scores and expanded keys of a block: 128 MiB in float32. The computer is waited for after each block, so that many
# small ones would take more time.
VALUES_AT_ONCE = 32 * 2**20
LEAST_KEYS = 512


class LatentBlocks(NamedTuple):
    """Blocks of *heads* and *keys* that are attended to one after the other.

    Attributes:
        absorbed: queries go into the latent's space; else keys and values are expanded from it, a block at a time.
    """

    absorbed: bool
    heads: int
    keys: int


def latent_blocks(shape: LatentAttention, *, step_tokens: int, context_tokens: int, rows: int = 1) -> LatentBlocks:
    """Return how a step is cut.

    Args:
        shape: heads and lengths.
        step_tokens: queries of a row.
        context_tokens: keys after the step.
        rows: conversations that are read at once.
    """
    absorbed = is_absorbed(shape, step_tokens=step_tokens, context_tokens=context_tokens)
    values = rows * (step_tokens + (0 if absorbed else expanded_length(shape)))
    heads = min(shape.head_count, max(1, VALUES_AT_ONCE // (LEAST_KEYS * values)))
    keys = min(context_tokens, max(LEAST_KEYS, VALUES_AT_ONCE // (heads * values)))
    return LatentBlocks(absorbed, heads, keys)


def expanded_length(shape: LatentAttention) -> int:
    """Return the values that are held for a key and a head: expanded, beside its rotary part, and its value."""
    return 2 * shape.nope_head_dim + shape.rope_head_dim + shape.value_head_dim


def is_absorbed(shape: LatentAttention, *, step_tokens: int, context_tokens: int) -> bool:
    """Return whether fewer products are needed in the latent's space.

    For a head, a query and a key those are 2 x rank + rope there, and nope + rope + value beside the expanded ones;
    taking a query into that space and its sum back costs as much as expanding a key: rank x (nope + value). With R1's
    lengths and a long context up to 170 queries are absorbed.
    """
    rank, length = shape.kv_lora_rank, shape.nope_head_dim + shape.value_head_dim
    inside = step_tokens * (context_tokens * 2 * rank + rank * length)
    outside = context_tokens * (step_tokens * length + rank * length)
    return inside < outside


def longest_absorbed_step(shape: LatentAttention) -> float:
    """Return the most queries that are absorbed, however long the context is."""
    rank, length = shape.kv_lora_rank, shape.nope_head_dim + shape.value_head_dim
    return rank * length / (2 * rank - length) if 2 * rank > length else inf


def heavy_steps(shape: LatentAttention, context_tokens: int) -> tuple[float, ...]:
    """Return the steps that may hold more than longer ones: the last before keys are cut, heads are, or K is expanded.

    They are not rounded, so that a longer context never seems to need less.
    """
    cut_at = (VALUES_AT_ONCE / (shape.head_count * keys) for keys in (context_tokens, LEAST_KEYS))
    return (*(step * side for step in cut_at for side in (1 - 1e-9, 1 + 1e-9)), longest_absorbed_step(shape))
