"""What would really help where a plan does not fit: commands that were each planned on that computer."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from r1mac.catalog.models import all_models
from r1mac.machine.base import HardwareProfile
from r1mac.plan.fit import MIN_CONTEXT_TOKENS, MemoryPlan
from r1mac.prepare.target import Target
from r1mac.prepare.wish import Wish, recipe_at, weights_by, wish_for
from r1mac.units import format_memory

_AT_MOST = 3
_NARROWER_KV_BITS = (8, 4)


class Remedy(NamedTuple):
    """A command that this computer can carry out, and what it changes."""

    command: str
    effect: str


def find_remedies(wish: Wish, hardware: HardwareProfile, raised: HardwareProfile | None) -> tuple[Remedy, ...]:
    """Return up to three commands that fit *hardware*, cheapest first.

    First those that leave room for a typical answer; if there is none of them, those that fit at all.

    Args:
        wish: what does not fit.
        hardware: the computer.
        raised: the same computer with the highest limit that ``r1mac tune`` would set; None where it would set none.
    """
    known = wish.arch.max_context_tokens
    if (wish.context_tokens or 0) > known:
        wish = replace(wish, context_tokens=known)
        if wish.plan(hardware).fits:
            return (_run(wish, hardware, "the longest context that the model knows"),)
    useful = tuple(islice(_Remedies(wish, hardware, raised, _is_useful).all(), _AT_MOST))
    return useful or tuple(islice(_Remedies(wish, hardware, raised, _fits).all(), _AT_MOST))


def binding_limit(wish: Wish, plan: MemoryPlan, raised: HardwareProfile | None) -> str:
    """Return what decides how long the context can be."""
    if plan.max_context_tokens >= wish.arch.max_context_tokens // 256 * 256:
        return "the model's own context length"
    if raised is not None and wish.plan(raised).max_context_tokens > plan.max_context_tokens:
        return "the GPU's wired limit, which `r1mac tune` can raise"
    return "the machine's memory"


def most_bits(wish: Wish, hardware: HardwareProfile) -> int | None:
    """Return the widest weights that fit with the context asked for; None if none do or the width is not ours."""
    return next((bits for bits in wish.widths if wish.at_bits(bits).plan(hardware).fits), None)


def _fits(wish: Wish, hardware: HardwareProfile) -> bool:
    return wish.plan(hardware).fits


def _is_useful(wish: Wish, hardware: HardwareProfile) -> bool:
    plan = wish.plan(hardware)
    return plan.fits and plan.context_tokens >= wish.useful_context_tokens


class _Remedies(NamedTuple):
    """The search for one wish; *helps* says whether a changed wish is good enough on a computer."""

    wish: Wish
    hardware: HardwareProfile
    raised: HardwareProfile | None
    helps: Callable[[Wish, HardwareProfile], bool]

    def all(self) -> Iterator[Remedy]:
        wish, raised = self.wish, self.raised
        if raised is not None and self.helps(wish, raised):
            yield _tune(wish, "lets the GPU use more of the machine's memory")
        narrower = self._narrower_cache(self.hardware)
        if narrower is not None:
            yield _run(narrower, self.hardware, _cache_size(narrower, self.hardware))
        elif raised is not None and not self.helps(wish, raised) and (cache := self._narrower_cache(raised)):
            yield _tune(cache, f"a higher limit, and {_cache_size(cache, raised)}")
        yield from self._shorter_context()
        yield from self._fewer_bits()
        yield from self._fewer_bits_and_tokens()
        yield from self._smaller_model()

    def _narrower_cache(self, hardware: HardwareProfile) -> Wish | None:
        widths = (replace(self.wish, kv_bits=bits) for bits in _NARROWER_KV_BITS if bits < self.wish.kv_bits)
        return next((narrower for narrower in widths if self.helps(narrower, hardware)), None)

    def _shorter_context(self) -> Iterator[Remedy]:
        wish = self.wish
        longest = wish.plan(self.hardware).max_context_tokens
        if wish.context_tokens is not None and MIN_CONTEXT_TOKENS <= longest < wish.context_tokens:
            yield _run(replace(wish, context_tokens=longest), self.hardware, "the longest context that fits")

    def _narrower_weights(self) -> Iterator[Wish]:
        yield from (self.wish.at_bits(bits) for bits in self.wish.widths if bits < (self.wish.target.bits or 0))

    def _fewer_bits(self) -> Iterator[Remedy]:
        tune_offered = False
        for fewer in self._narrower_weights():
            if self.helps(fewer, self.hardware):
                yield _run(fewer, self.hardware, _weights_size(fewer, self.hardware))
                return
            if not tune_offered and self.raised is not None and self.helps(fewer, self.raised):
                tune_offered = True
                yield _tune(fewer, f"a higher limit, and {_weights_size(fewer, self.raised)}")

    def _fewer_bits_and_tokens(self) -> Iterator[Remedy]:
        """Offer the widest weights that leave room for any context, where none fits with the one asked for."""
        if self.wish.context_tokens is None:
            return
        for fewer in self._narrower_weights():
            plan = fewer.plan(self.hardware)
            if plan.fits:
                return
            if plan.max_context_tokens >= MIN_CONTEXT_TOKENS:
                shorter = replace(fewer, context_tokens=plan.max_context_tokens)
                effect = f"{_weights_size(shorter, self.hardware)}, and it is the longest context"
                yield _run(shorter, self.hardware, effect)
                return

    def _smaller_model(self) -> Iterator[Remedy]:
        """Offer the largest member of the family that helps and is smaller, by the weight of the originals.

        Counting the parameters of every model would cost 30 ms.
        """
        own_bytes = _source_bytes(self.wish)
        smaller = [spec for spec in all_models() if spec.source_bytes < own_bytes and spec.is_member]
        settings = self.wish.settings.without_flags()
        for spec in sorted(smaller, key=lambda spec: -spec.source_bytes):
            bits = settings.for_model(spec.key, *spec.aliases).bits or spec.default_bits
            target = Target(title=spec.title, spec=spec, bits=bits)
            weights = weights_by(recipe_at(spec, bits), spec.arch)
            other = wish_for(target, spec.arch, weights, settings, mac=self.wish.mac)
            if self.helps(other, self.hardware):
                yield _run(other, self.hardware, f"{spec.title}, the largest that fits")
                return


def _source_bytes(wish: Wish) -> int:
    spec = wish.target.spec
    return spec.source_bytes if spec else wish.weights.stored_bytes * 16 // (wish.target.bits or 16)


def _cache_size(wish: Wish, hardware: HardwareProfile) -> str:
    return f"the KV cache takes {format_memory(wish.plan(hardware).kv_cache_bytes)} at {wish.kv_bits} bits"


def _weights_size(wish: Wish, hardware: HardwareProfile) -> str:
    return f"the weights take {format_memory(wish.plan(hardware).weight_bytes)}"


def _run(wish: Wish, hardware: HardwareProfile, effect: str) -> Remedy:
    if wish.context_tokens is None:
        effect += f", with {wish.plan(hardware).context_tokens} tokens of context"
    return Remedy(command=wish.command_line("run"), effect=effect)


def _tune(wish: Wish, effect: str) -> Remedy:
    there = "on that Mac: " if wish.mac is not None else ""
    return Remedy(command=f"{wish.command_line('tune')} --apply", effect=there + effect)
