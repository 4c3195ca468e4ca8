"""Which wired limit, context and cache a model should get on a Mac. It decides and changes nothing.

The policy: what macOS allows by itself is left alone where it suffices. Else the limit is raised to the least,
in steps of 1 GiB, that the model fits under, and never so far that macOS keeps less than a reserve. Where even
that is not enough the context shrinks first, then the cache's values get fewer bits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from r1mac.catalog.arch import ArchSpec
from r1mac.machine.base import HardwareProfile
from r1mac.machine.darwin import LEAST_FOR_MACOS_BYTES, default_wired_limit_bytes, default_wired_limit_source
from r1mac.plan.fit import DEFAULT_CONTEXT_TOKENS, MIN_CONTEXT_TOKENS, MemoryPlan, fit
from r1mac.units import GIB, MIB, format_memory

# With so little memory the default leaves macOS less than the reserve already.
_SMALL_MEMORY_BYTES = 16 * GIB
_LIMIT_STEP_MIB = 1024
# A shorter prefill step reads a prompt slower; a longer one hardly faster.
_GOOD_STEP_TOKENS = 512
# A shorter context is too short for R1's thoughts more often than not, so the cache is quantised before.
_GOOD_CONTEXT_TOKENS = 8_192
_CONTEXT_GRAIN_TOKENS = 256
_KV_BITS = (16, 8, 4)
_FIRST_MACOS = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The wired limits of one Mac, in MiB but for the default.

    Attributes:
        default_bytes: what macOS allows by itself.
        default_is_estimated: whether no published Mac of this size and macOS shows that number.
        set_mib: ``iogpu.wired_limit_mb`` now; 0 is macOS's own.
        highest_mib: the most that r1mac would set; 0 where it would set none.
        bearable_mib: above this macOS keeps less than 4 GiB.
        breaks_reserve: whether the limit that is set leaves macOS less than the reserve that somebody asked for.
    """

    default_bytes: int
    default_is_estimated: bool
    set_mib: int
    highest_mib: int
    bearable_mib: int
    breaks_reserve: bool = False

    @property
    def too_high(self) -> bool:
        """Whether the limit is set to more than this Mac can bear; macOS's own may be that much on the smallest."""
        return self.is_too_high(self.set_mib)

    def is_too_high(self, mib: int) -> bool:
        """Tell whether this Mac could not bear a limit of *mib*."""
        return mib > self.bearable_mib and mib * MIB > self.default_bytes

    @property
    def must_change(self) -> bool:
        """Whether the limit that is set may not stay, whatever the model needs."""
        return self.too_high or self.breaks_reserve

    @property
    def usable_set_mib(self) -> int:
        """The limit that somebody set, as far as it may stay; 0 is none."""
        return 0 if self.must_change else self.set_mib


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What a model should get on a Mac, and why.

    Attributes:
        wired_limit_mib: the limit to set; 0 is macOS's own; None leaves it alone.
        plan: the memory plan under the limit that there will be then; where nothing helps, the one that does
            not fit under the highest limit. A limit that may not stay is then to be macOS's own.
        reasons: sentences for a person.
    """

    wired_limit_mib: int | None
    plan: MemoryPlan
    reasons: tuple[str, ...]

    @property
    def kv_bits(self) -> int:
        """The width of the cache's values."""
        return self.plan.kv_bits

    @property
    def context_tokens(self) -> int:
        """The longest conversation."""
        return self.plan.context_tokens

    @property
    def prefill_step_tokens(self) -> int:
        """How much of a prompt is read at once."""
        return self.plan.prefill_step_tokens


def limits_of(hardware: HardwareProfile, *, reserve_bytes: int | None = None) -> Limits:
    """Return the limits of a Mac.

    Args:
        hardware: its facts.
        reserve_bytes: what macOS is to keep, if not the policy's own; never less than 4 GiB.
    """
    memory_bytes = hardware.memory_bytes
    macos_major = (hardware.macos or (_FIRST_MACOS,))[0]
    default_bytes = default_wired_limit_bytes(memory_bytes, macos_major)
    proven = hardware.macos is not None and default_wired_limit_source(memory_bytes, macos_major) == "default"
    reserve = default_reserve_bytes(memory_bytes) if reserve_bytes is None else reserve_bytes
    reserve = max(LEAST_FOR_MACOS_BYTES, reserve)
    highest_mib = (memory_bytes - reserve) // MIB
    if memory_bytes <= _SMALL_MEMORY_BYTES or highest_mib * MIB <= default_bytes:
        highest_mib = 0
    set_bytes = hardware.wired_limit_bytes if hardware.wired_limit_source == "override" else 0
    return Limits(
        default_bytes=default_bytes,
        default_is_estimated=hardware.virtual or not proven,
        set_mib=set_bytes // MIB,
        highest_mib=highest_mib,
        bearable_mib=(memory_bytes - LEAST_FOR_MACOS_BYTES) // MIB,
        breaks_reserve=reserve_bytes is not None and set_bytes > max(memory_bytes - reserve, default_bytes),
    )


def most_reserve_bytes(hardware: HardwareProfile) -> int:
    """Return the largest reserve that a Mac can have: what its own limit leaves, for none is set below that."""
    return hardware.memory_bytes - limits_of(hardware).default_bytes


def default_reserve_bytes(memory_bytes: int) -> int:
    """Return what macOS and other programs keep of *memory_bytes* unless the user says another reserve."""
    return max(8 * GIB, memory_bytes // 20 + 4 * GIB)


def choose(
    arch: ArchSpec,
    hardware: HardwareProfile,
    *,
    stored_bytes: int,
    context_tokens: int | None = None,
    kv_bits: int | None = None,
    reserve_bytes: int | None = None,
    scratch_factor: float = 1.0,
    parallel: int = 1,
) -> Tuning:
    """Return what a model whose weights take *stored_bytes* should get on a Mac.

    What the user said is kept: *context_tokens* is not shortened and *kv_bits* not lowered. The tuning is
    returned also where nothing helps; then its plan does not fit, and the limit is left alone.

    Args:
        arch: the model's shape.
        hardware: the Mac as it is, with the limit that is in force.
        stored_bytes: what the weights take on disk.
        context_tokens: the context that the user wants.
        kv_bits: the width of the cache's values that the user wants.
        reserve_bytes: what macOS is to keep, if not the policy's own; never less than 4 GiB.
        scratch_factor: what this Mac's first runs showed beside the formula's prefill scratch.
        parallel: how many replies are to be written at once.
    """
    limits = limits_of(hardware, reserve_bytes=reserve_bytes)

    def plan_at(limit_bytes: int, context: int, bits: int) -> MemoryPlan:
        changed = replace(hardware, wired_limit_bytes=limit_bytes, wired_limit_source="override")
        return fit(
            arch,
            changed,
            stored_bytes=stored_bytes,
            context_tokens=context,
            kv_bits=bits,
            scratch_factor=scratch_factor,
            parallel=parallel,
        )

    wish = context_tokens or min(DEFAULT_CONTEXT_TOKENS, arch.max_context_tokens)
    # A user's own limit may be above what r1mac would set; while macOS can bear it, it may be used.
    most_bytes = max(limits.default_bytes, limits.highest_mib * MIB, limits.usable_set_mib * MIB)
    kept_context, bits = _shrink(
        lambda context, width: plan_at(most_bytes, context, width),
        wish=wish,
        fixed_context=context_tokens is not None,
        widths=(kv_bits,) if kv_bits is not None else _KV_BITS[: 1 if parallel > 1 else None],
    )
    best = plan_at(most_bytes, kept_context, bits)
    reasons = [*_warnings(limits, hardware)]
    if not best.fits:
        reasons.append(_too_large(best, limits))
        return Tuning(wired_limit_mib=0 if limits.must_change else None, plan=best, reasons=tuple(reasons))
    good_step = min(_GOOD_STEP_TOKENS, best.prefill_step_tokens)
    limit_mib = _least_limit_mib(
        limits, lambda limit_bytes: _is_good(plan_at(limit_bytes, kept_context, bits), good_step)
    )
    wired_limit_mib = _change(limits, limit_mib, plan_at(hardware.wired_limit_bytes, kept_context, bits), good_step)
    in_force = hardware.wired_limit_bytes if wired_limit_mib is None else wired_limit_mib * MIB or limits.default_bytes
    plan = plan_at(in_force, kept_context, bits)
    if limit_mib and wired_limit_mib is not None:
        reasons += _why_raised(limits, limit_mib, plan, plan_at(limits.default_bytes, kept_context, bits), hardware)
    else:
        limit = "the limit that is set" if wired_limit_mib is None and limits.set_mib else "macOS's own limit"
        need, gives = format_memory(plan.total_bytes), format_memory(plan.budget_bytes)
        reasons.append(f"it needs {need}, and {limit} gives {gives}")
    reasons += _shrunk(wish, plan, fixed_context=context_tokens is not None)
    return Tuning(wired_limit_mib=wired_limit_mib, plan=plan, reasons=tuple(reasons))


def _shrink(
    plan_for: Callable[[int, int], MemoryPlan], *, wish: int, fixed_context: bool, widths: tuple[int, ...]
) -> tuple[int, int]:
    """Return the context and width of the cache to have under the highest limit: the wish, or what comes nearest.

    Args:
        plan_for: the plan for a context and a width.
        wish: the context that is wanted.
        fixed_context: whether it may not be shortened.
        widths: the cache's widths, the best first.
    """
    for least in (wish,) if fixed_context else (_GOOD_CONTEXT_TOKENS, MIN_CONTEXT_TOKENS):
        for width in widths:
            context = wish if fixed_context else _longest_context(plan_for, wish, width)
            if context >= min(wish, least) and plan_for(context, width).fits:
                return context, width
    return wish, widths[0]


def _longest_context(plan_for: Callable[[int, int], MemoryPlan], wish: int, width: int) -> int:
    """Return the longest context up to *wish* with a good prefill step, or with any step where that is too short."""
    plan = plan_for(wish, width)
    if _is_good(plan, _GOOD_STEP_TOKENS):
        return wish
    low, high = 0, wish // _CONTEXT_GRAIN_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        if _is_good(plan_for(middle * _CONTEXT_GRAIN_TOKENS, width), _GOOD_STEP_TOKENS):
            low = middle
        else:
            high = middle - 1
    longest = low * _CONTEXT_GRAIN_TOKENS
    return longest if longest >= _GOOD_CONTEXT_TOKENS else min(wish, plan.max_context_tokens)


def _is_good(plan: MemoryPlan, least_step_tokens: int) -> bool:
    return plan.fits and plan.prefill_step_tokens >= least_step_tokens


def _least_limit_mib(limits: Limits, suffices: Callable[[int], bool]) -> int:
    """Return the least limit that *suffices* (a test of bytes, which the highest passes); 0 is macOS's own."""
    if suffices(limits.default_bytes):
        return 0
    return next(mib for mib in _steps(limits) if suffices(mib * MIB))


def _steps(limits: Limits) -> Iterator[int]:
    """Yield the limits to try, from just above the default to the highest."""
    most_mib = max(limits.highest_mib, limits.usable_set_mib)
    first = limits.default_bytes // MIB // _LIMIT_STEP_MIB + 1
    yield from range(first * _LIMIT_STEP_MIB, most_mib, _LIMIT_STEP_MIB)
    yield most_mib


def _change(limits: Limits, limit_mib: int, plan_now: MemoryPlan, good_step: int) -> int | None:
    """Return what to set the limit to, or None where it may stay: *limit_mib* is the least that suffices."""
    if limits.must_change:
        return limit_mib
    if limits.set_mib == 0:
        return limit_mib or None
    return None if _is_good(plan_now, good_step) else limit_mib


def _warnings(limits: Limits, hardware: HardwareProfile) -> Iterator[str]:
    if limits.too_high:
        yield (
            f"the limit is set to {limits.set_mib} MiB, which leaves macOS less than 4 GiB of "
            f"{format_memory(hardware.memory_bytes)}: this Mac may freeze"
        )
    elif limits.breaks_reserve:
        left = format_memory(hardware.memory_bytes - limits.set_mib * MIB)
        yield f"the limit that is set, {limits.set_mib} MiB, leaves macOS {left}, less than the reserve you ask for"


def _too_large(best: MemoryPlan, limits: Limits) -> str:
    return (
        f"it needs {format_memory(best.total_bytes)}; "
        + (
            f"the highest limit here, {best.limit_bytes // MIB} MiB,"
            if best.limit_bytes > limits.default_bytes
            else "macOS's own limit"
        )
        + f" gives {format_memory(best.budget_bytes)}, so no limit would help"
    )


def _why_raised(
    limits: Limits, limit_mib: int, plan: MemoryPlan, default_plan: MemoryPlan, hardware: HardwareProfile
) -> Iterator[str]:
    """Yield why macOS's own limit, with its *default_plan*, does not suffice, and what the raised one leaves."""
    need, own = format_memory(plan.total_bytes), format_memory(default_plan.budget_bytes)
    default = format_memory(limits.default_bytes)
    if default_plan.fits:
        yield (
            f"it fits macOS's own limit of {default}, which gives {own} (a tenth stays free), with a prefill step of "
            f"{default_plan.prefill_step_tokens}; one of {plan.prefill_step_tokens}, which reads prompts faster, needs "
            f"{need}"
        )
    else:
        yield f"it needs {need}; macOS's own limit of {default} gives {own} (a tenth stays free)"
    if limits.default_is_estimated:
        yield "macOS's own limit is estimated: no Mac of this size with this macOS is known to r1mac"
    left = format_memory(hardware.memory_bytes - limit_mib * MIB)
    yield f"{limit_mib} MiB is the least limit that suffices, and leaves macOS {left}"


def _shrunk(wish: int, plan: MemoryPlan, *, fixed_context: bool) -> Iterator[str]:
    if plan.context_tokens < wish:
        # A shorter step would make room for more; the shortest there is has none to give.
        beside = f" beside a prefill step of {plan.prefill_step_tokens}"
        beside = beside if plan.prefill_step_tokens >= _GOOD_STEP_TOKENS else ""
        yield f"the context is {plan.context_tokens} tokens instead of {wish}: more does not fit{beside}"
    if plan.kv_bits < _KV_BITS[0]:
        else_ = "it would not fit" if fixed_context else "the context would be shorter"
        yield f"the cache has {plan.kv_bits} bits a value: with more {else_}"
