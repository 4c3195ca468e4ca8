"""MLX's own three limits, set once per model from the plan, in the order in which MLX wants them."""

import contextlib
import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from r1mac.plan.fit import MemoryPlan
from r1mac.units import GIB, MIB

# What MLX holds beside the plan: its own tables, and the program's other arrays.
_WIRED_MARGIN_BYTES = GIB
# Freed buffers that are kept save an allocation for every operation; this much always pays.
_LEAST_CACHE_BYTES = 256 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class MLXLimits:
    """What MLX may hold.

    Attributes:
        memory_bytes: above it MLX waits for running work before it allocates more; it is a guideline to MLX.
        cache_bytes: freed buffers that MLX may keep for reuse.
        wired_bytes: what the kernel must not compress or move; 0 wires nothing.
    """

    memory_bytes: int
    cache_bytes: int
    wired_bytes: int


def choose_limits(plan: MemoryPlan, device_info: Mapping[str, Any]) -> MLXLimits | None:
    """Return the limits that *plan* wants on a device; None where it states no working set, as a CPU does not.

    Weights are wired when the plan takes half of the computer's memory or more: left alone, macOS compresses a
    model of that size under pressure and decodes it tens of times slower. Small models are not wired, since a
    driver fault that panics the kernel was only ever seen with wired sets. Nothing exceeds the working set: MLX
    refuses that. Freed buffers are kept up to the plan's scratch, which they are used for again: what the plan
    leaves over may be another process's.
    """
    working_set_bytes = int(device_info.get("max_recommended_working_set_size", 0))
    if working_set_bytes <= 0:
        return None
    large = 2 * plan.total_bytes >= int(device_info.get("memory_size", working_set_bytes))
    return MLXLimits(
        memory_bytes=min(working_set_bytes, max(plan.budget_bytes, plan.total_bytes)),
        cache_bytes=min(working_set_bytes, max(_LEAST_CACHE_BYTES, plan.prefill_scratch_bytes)),
        wired_bytes=min(working_set_bytes, plan.total_bytes + _WIRED_MARGIN_BYTES) if large else 0,
    )


@contextlib.contextmanager
def limited(plan: MemoryPlan) -> Iterator[MLXLimits | None]:
    """Set MLX's limits for this process, once and before a model is loaded; put the former ones back at the end."""
    limits = choose_limits(plan, mx.device_info())
    if limits is None:
        yield None
        return
    former_memory = mx.set_memory_limit(limits.memory_bytes)
    former_cache = mx.set_cache_limit(limits.cache_bytes)
    former_wired = mx.set_wired_limit(limits.wired_bytes) if limits.wired_bytes else None
    try:
        yield limits
    finally:
        # Nothing may still be computing when the wired set changes.
        mx.synchronize()
        if former_wired is not None:
            mx.set_wired_limit(former_wired)
        mx.set_cache_limit(former_cache)
        mx.set_memory_limit(former_memory)


def held_bytes() -> int:
    """Return what MLX holds in this process now. Any thread."""
    return int(mx.get_active_memory())


def let_go() -> None:
    """Give the memory of a model that nobody names any more back to the computer. On the thread that loaded it."""
    # Modules and their parents know each other.
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
