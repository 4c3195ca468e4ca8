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


class Limiting:
    """MLX's limits of this process while a model is loaded.

    Attributes:
        limits: those in force; None where the device states no working set.
    """

    def __init__(self) -> None:
        self.limits: MLXLimits | None = None
        # What was in force before the first of ours.
        self._former: dict[str, int] = {}

    def follow(self, plan: MemoryPlan) -> None:
        """Set what *plan* wants: before the model is loaded, or between two replies where its plan has changed."""
        limits = choose_limits(plan, mx.device_info())
        if limits is None:
            return
        wired_bytes = 0 if self.limits is None else self.limits.wired_bytes
        if self.limits is not None:
            # Nothing may still be computing when the wired set changes.
            mx.synchronize()
        self._former.setdefault("memory", mx.set_memory_limit(limits.memory_bytes))
        self._former.setdefault("cache", mx.set_cache_limit(limits.cache_bytes))
        if limits.wired_bytes != wired_bytes:
            self._former.setdefault("wired", mx.set_wired_limit(limits.wired_bytes))
        self.limits = limits

    def end(self) -> None:
        """Put back what was in force before."""
        if self.limits is None:
            return
        mx.synchronize()
        if "wired" in self._former:
            mx.set_wired_limit(self._former["wired"])
        mx.set_cache_limit(self._former["cache"])
        mx.set_memory_limit(self._former["memory"])
        self.limits, self._former = None, {}


@contextlib.contextmanager
def limited(plan: MemoryPlan) -> Iterator[Limiting]:
    """Set MLX's limits for this process before a model is loaded; put the former ones back at the end."""
    limiting = Limiting()
    limiting.follow(plan)
    try:
        yield limiting
    finally:
        limiting.end()


def held_bytes() -> int:
    """Return what MLX holds in this process now. Any thread."""
    return int(mx.get_active_memory())


def let_go() -> None:
    """Give the memory of a model that nobody names any more back to the computer. On the thread that loaded it."""
    # Modules and their parents know each other.
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
