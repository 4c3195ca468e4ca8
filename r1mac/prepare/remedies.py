"""What would really help where a plan does not fit: commands that were each planned here, cheapest first."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from r1mac.catalog.models import all_models
from r1mac.machine.base import HardwareProfile
from r1mac.plan.fit import MIN_CONTEXT_TOKENS, MemoryPlan, fit
from r1mac.plan.recipe import recipe_bytes
from r1mac.prepare.wish import Wish, recipe_at
from r1mac.units import format_memory

_AT_MOST = 3
_NARROWER_KV_BITS = (8, 4)


class Remedy(NamedTuple):
    """A command that this computer can carry out, and what it changes."""

    command: str
    effect: str


def find_remedies(wish: Wish, hardware: HardwareProfile, raised: HardwareProfile | None) -> tuple[Remedy, ...]:
    """Return up to three commands that fit *hardware*, cheapest first.

    Args:
        wish: what does not fit.
        hardware: this computer.
        raised: the same computer with the highest limit that ``r1mac tune`` would set; None where it would set none.
    """
    known = wish.arch.max_context_tokens
    if (wish.context_tokens or 0) > known:
        wish = replace(wish, context_tokens=known)
        if wish.plan(hardware).fits:
            return (_run(wish, "the longest context that the model knows"),)
    return tuple(islice(_remedies(wish, hardware, raised), _AT_MOST))


def binding_limit(wish: Wish, plan: MemoryPlan, raised: HardwareProfile | None) -> str:
    """Return what decides how long the context can be."""
    if plan.max_context_tokens >= wish.arch.max_context_tokens // 256 * 256:
        return "the model's own context length"
    if raised is not None and wish.plan(raised).max_context_tokens > plan.max_context_tokens:
        return "the GPU's wired limit, which `r1mac tune` can raise"
    return "this machine's memory"


def most_bits(wish: Wish, hardware: HardwareProfile) -> int | None:
    """Return the widest weights that fit with the context asked for; None if none do or the width is not ours."""
    return next((bits for bits in wish.widths if wish.at_bits(bits).plan(hardware).fits), None)


def _remedies(wish: Wish, hardware: HardwareProfile, raised: HardwareProfile | None) -> Iterator[Remedy]:
    if raised is not None and wish.plan(raised).fits:
        yield _tune(wish, "lets the GPU use more of this machine's memory")
    yield from _narrower_cache(wish, hardware)
    yield from _shorter_context(wish, hardware)
    if raised is not None and not wish.plan(raised).fits:
        yield from _narrower_cache(wish, raised, tuned=True)
    yield from _fewer_bits(wish, hardware, raised)
    yield from _fewer_bits_and_tokens(wish, hardware)
    yield from _smaller_model(wish, hardware)


def _narrower_cache(wish: Wish, hardware: HardwareProfile, *, tuned: bool = False) -> Iterator[Remedy]:
    for kv_bits in _NARROWER_KV_BITS:
        narrower = replace(wish, kv_bits=kv_bits)
        if kv_bits < wish.kv_bits and (plan := narrower.plan(hardware)).fits:
            effect = f"the KV cache takes {format_memory(plan.kv_cache_bytes)} at {kv_bits} bits"
            yield _tune(narrower, f"a higher limit, and {effect}") if tuned else _run(narrower, effect)
            return


def _shorter_context(wish: Wish, hardware: HardwareProfile) -> Iterator[Remedy]:
    longest = wish.plan(hardware).max_context_tokens
    if wish.context_tokens is not None and MIN_CONTEXT_TOKENS <= longest < wish.context_tokens:
        yield _run(replace(wish, context_tokens=longest), "the longest context that fits")


def _fewer_bits(wish: Wish, hardware: HardwareProfile, raised: HardwareProfile | None) -> Iterator[Remedy]:
    tune_offered = False
    for fewer in (wish.at_bits(bits) for bits in wish.widths if bits < (wish.target.bits or 0)):
        if (plan := fewer.plan(hardware)).fits:
            yield _run(fewer, f"the weights take {format_memory(plan.weight_bytes)}")
            return
        if not tune_offered and raised is not None and (plan := fewer.plan(raised)).fits:
            tune_offered = True
            yield _tune(fewer, f"a higher limit, and the weights take {format_memory(plan.weight_bytes)}")


def _fewer_bits_and_tokens(wish: Wish, hardware: HardwareProfile) -> Iterator[Remedy]:
    """Offer the widest weights that leave room for any context, where none fits with the one asked for."""
    if wish.context_tokens is None:
        return
    for fewer in (wish.at_bits(bits) for bits in wish.widths if bits < (wish.target.bits or 0)):
        plan = fewer.plan(hardware)
        if plan.fits:
            return
        if plan.max_context_tokens >= MIN_CONTEXT_TOKENS:
            shorter = replace(fewer, context_tokens=plan.max_context_tokens)
            yield _run(shorter, f"the weights take {format_memory(plan.weight_bytes)}, and it is the longest context")
            return


def _smaller_model(wish: Wish, hardware: HardwareProfile) -> Iterator[Remedy]:
    """Offer the largest member of the family that fits and is smaller, by the weight of the originals.

    Counting the parameters of every model would cost 30 ms.
    """
    spec = wish.target.spec
    own_bytes = spec.source_bytes if spec else wish.stored_bytes * 16 // (wish.target.bits or 16)
    smaller = (other for other in all_models() if other.source_bytes < own_bytes and other.packaged is None)
    for other in sorted(smaller, key=lambda other: -other.source_bytes):
        stored_bytes = recipe_bytes(other.arch, recipe_at(other, other.default_bits))
        if fit(other.arch, hardware, stored_bytes=stored_bytes).fits:
            yield Remedy(command=f"r1mac run {other.alias}", effect=f"{other.title}, the largest that fits")
            return


def _run(wish: Wish, effect: str) -> Remedy:
    return Remedy(command=wish.command_line("run"), effect=effect)


def _tune(wish: Wish, effect: str) -> Remedy:
    return Remedy(command=f"{wish.command_line('tune')} --apply", effect=effect)
