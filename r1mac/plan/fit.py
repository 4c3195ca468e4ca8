"""A model, a computer and a wish become a memory plan."""

from dataclasses import dataclass

from r1mac.catalog.arch import ArchSpec
from r1mac.machine.base import HardwareProfile
from r1mac.plan.compute import Compute, choose_compute, loaded_weight_bytes
from r1mac.plan.memory import kv_bytes_per_token, kv_cache_bytes, prefill_scratch_bytes
from r1mac.units import GIB

# Long enough for the thoughts that R1's own scores were measured with.
DEFAULT_CONTEXT_TOKENS = 32_768
# A question with a page of text to it.
TYPICAL_PROMPT_TOKENS = 1_000
# Below this a thought does not finish, so a plan with less is none.
MIN_CONTEXT_TOKENS = 2_048
_PREFILL_STEPS = (2048, 1024, 512, 256, 128, 64)
# On a CPU attention also computes what a token must not see: a longer step takes more time (docs/lab.md), and a short
# one answers Ctrl-C sooner.
_CPU_PREFILL_STEPS = (256, 128, 64)
_CONTEXT_GRAIN_TOKENS = 256
# macOS begins to compress what lies within a tenth of its limit (mlx-lm warns there too).
_RESERVE_SHARE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What a model needs on one computer, term by term, beside what there is.

    Attributes:
        weight_bytes: the weights in the type that they are computed in.
        kv_cache_bytes: the cache when the context is full; the caches of all replies and their copy, if several.
        kv_bits: width of the cache's values; 16 is the type that the model computes in.
        prefill_scratch_bytes: the most that reading the prompt holds beside both.
        reserve_bytes: what is left free of the limit.
        limit_bytes: the machine's wired limit as far as it can be used, or its memory where there is none.
        max_context_tokens: the longest context that would fit; 0 if the weights alone do not.
        parallel: how many replies are written at once, each with a context of its own.
        draft_bytes: all that a smaller model takes that drafts for this one.
        kept_prompts_bytes: the most that is kept in memory of conversations that are not at work.
    """

    weight_bytes: int
    kv_bytes_per_token: int
    kv_cache_bytes: int
    kv_bits: int
    context_tokens: int
    prefill_step_tokens: int
    prefill_scratch_bytes: int
    reserve_bytes: int
    limit_bytes: int
    max_context_tokens: int
    compute: Compute
    parallel: int = 1
    draft_bytes: int = 0
    kept_prompts_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All that is needed at once."""
        cache_bytes = self.kv_cache_bytes + self.kept_prompts_bytes
        return self.weight_bytes + cache_bytes + self.prefill_scratch_bytes + self.draft_bytes

    @property
    def budget_bytes(self) -> int:
        """What may be used: the limit without the reserve."""
        return self.limit_bytes - self.reserve_bytes

    @property
    def fits(self) -> bool:
        """Whether it can be run."""
        return self.total_bytes <= self.budget_bytes


def fit(
    arch: ArchSpec,
    hardware: HardwareProfile,
    *,
    stored_bytes: int,
    context_tokens: int | None = None,
    kv_bits: int = 16,
    most_step_tokens: int | None = None,
    scratch_factor: float = 1.0,
    parallel: int = 1,
) -> MemoryPlan:
    """Plan the memory of a model whose weights take *stored_bytes* on disk.

    Without *context_tokens* the context is DEFAULT_CONTEXT_TOKENS, or as much as the model knows and the
    memory holds. The prefill step is the longest that fits, up to *most_step_tokens*. *scratch_factor* is what this
    computer's first runs showed beside the formula's prefill scratch. Of replies that are written at once, *parallel*
    of them, each has the whole context. The plan is returned also where it does not fit.
    """
    compute = choose_compute(arch, hardware)
    limit = _usable_limit_bytes(hardware)
    reserve = limit // _RESERVE_SHARE
    needs = ContextNeeds(
        arch,
        hardware,
        compute=compute,
        stored_bytes=stored_bytes,
        kv_bits=kv_bits,
        scratch_factor=scratch_factor,
        parallel=parallel,
    )

    def room(compute: Compute) -> int:
        return limit - reserve - loaded_weight_bytes(arch, stored_bytes, compute)

    # Dequantising is for speed only: a context that it leaves no room for goes before it.
    longest = needs.longest_context(room(Compute.FLOAT32 if compute is Compute.DEQUANTIZED else compute))
    context = context_tokens or min(DEFAULT_CONTEXT_TOKENS, arch.max_context_tokens)
    if context_tokens is None and longest >= min(MIN_CONTEXT_TOKENS, arch.max_context_tokens):
        context = min(context, longest)
    if compute is Compute.DEQUANTIZED and not needs.fit_into(room(compute), context):
        compute = Compute.FLOAT32
    step = needs.longest_step(context, room(compute))
    step = min(step, most_step_tokens or step)
    return MemoryPlan(
        weight_bytes=loaded_weight_bytes(arch, stored_bytes, compute),
        kv_bytes_per_token=needs.bytes_per_token(kv_bits),
        kv_cache_bytes=needs.cache_bytes(context),
        kv_bits=kv_bits,
        context_tokens=context,
        prefill_step_tokens=step,
        prefill_scratch_bytes=needs.scratch_bytes(context, step),
        reserve_bytes=reserve,
        limit_bytes=limit,
        max_context_tokens=longest,
        compute=compute,
        parallel=parallel,
    )


def _usable_limit_bytes(hardware: HardwareProfile) -> int:
    """Return the limit to plan with: the kernel takes any number, also one above the memory that there is.

    macOS needs 4 GiB for itself; only its own limit leaves it less, on small Macs.
    """
    if hardware.wired_limit_source != "override" or hardware.macos is None:
        return hardware.wired_limit_bytes
    from r1mac.machine.darwin import default_wired_limit_bytes

    default_bytes = default_wired_limit_bytes(hardware.memory_bytes, hardware.macos[0])
    return min(hardware.wired_limit_bytes, max(hardware.memory_bytes - 4 * GIB, default_bytes))


class ContextNeeds:
    """The terms of a plan that grow with the context.

    Attributes:
        steps: the prefill steps that there are, the longest first.
    """

    def __init__(
        self,
        arch: ArchSpec,
        hardware: HardwareProfile,
        *,
        compute: Compute,
        stored_bytes: int,
        kv_bits: int,
        scratch_factor: float = 1.0,
        parallel: int = 1,
    ) -> None:
        """Take the shape, the computer, and what ``fit`` is told of both; *compute* is the type to compute in."""
        self.steps = _PREFILL_STEPS if hardware.system == "macos" else _CPU_PREFILL_STEPS
        self._arch = arch
        self._fused = hardware.fused_attention
        self._value_bytes = 2 if compute is Compute.AS_STORED else 4
        self._kv_bits = kv_bits
        self._quantized_weights = compute is not Compute.DEQUANTIZED and 8 * stored_bytes < 12 * arch.parameter_count
        self._scratch_factor = scratch_factor
        # Whenever a reply joins or leaves the others, mlx-lm copies the caches of all.
        self._caches = 1 if parallel == 1 else 2 * parallel

    def bytes_per_token(self, kv_bits: int) -> int:
        """Return what a token of context costs one reply with a cache of that width."""
        return kv_bytes_per_token(self._arch, value_bytes=self._value_bytes, kv_bits=kv_bits)

    def cache_bytes(self, context_tokens: int) -> int:
        """Return what the caches take when the context is full."""
        one = kv_cache_bytes(self._arch, context_tokens, value_bytes=self._value_bytes, kv_bits=self._kv_bits)
        return self._caches * one

    def scratch_bytes(self, context_tokens: int, step_tokens: int, kv_bits: int | None = None) -> int:
        """Return what a prefill step holds beside weights and cache, of its own width or of another."""
        scratch = prefill_scratch_bytes(
            self._arch,
            step_tokens=step_tokens,
            context_tokens=context_tokens,
            fused_attention=self._fused,
            value_bytes=self._value_bytes,
            kv_bits=kv_bits or self._kv_bits,
            quantized_weights=self._quantized_weights,
        )
        return round(self._scratch_factor * scratch)

    def fit_into(self, room_bytes: int, context_tokens: int, step_tokens: int | None = None) -> bool:
        """Tell whether cache and scratch fit, with the shortest step if none is said."""
        scratch = self.scratch_bytes(context_tokens, step_tokens or self.steps[-1])
        return self.cache_bytes(context_tokens) + scratch <= room_bytes

    def longest_step(self, context_tokens: int, room_bytes: int) -> int:
        """Return the longest prefill step that fits, or the shortest there is."""
        fitting = (step for step in self.steps if self.fit_into(room_bytes, context_tokens, step))
        return next(fitting, self.steps[-1])

    def longest_context(self, room_bytes: int) -> int:
        """Return the longest context that fits with the shortest step, in whole grains."""
        low, high = 0, self._arch.max_context_tokens // _CONTEXT_GRAIN_TOKENS
        while low < high:
            middle = (low + high + 1) // 2
            if self.fit_into(room_bytes, middle * _CONTEXT_GRAIN_TOKENS):
                low = middle
            else:
                high = middle - 1
        return low * _CONTEXT_GRAIN_TOKENS
