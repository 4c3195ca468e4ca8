"""The whole family on one computer: every member at every width."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from r1mac.catalog.models import all_models
from r1mac.machine.base import HardwareProfile
from r1mac.plan.recipe import WIDE_BITS
from r1mac.prepare.planning import Judgement, judge_wish
from r1mac.prepare.target import Target
from r1mac.prepare.wish import Weights, Wish, wish_for
from r1mac.settings import Settings

if TYPE_CHECKING:
    from r1mac.catalog.arch import ArchSpec


def judge_family(hardware: HardwareProfile, settings: Settings, *, mac: str | None = None) -> Iterator[Judgement]:
    """Yield a judgement for each member at each quantised width, small models and wide weights first.

    Models of one shape need the same memory and are as fast: the first of the catalog stands for all. A width, a
    context or a cache that *settings* say is that of every row; a context is shortened for models that know less.
    """
    seen: set[ArchSpec] = set()
    for spec in all_models():
        if spec.arch in seen or not spec.is_member:
            continue
        seen.add(spec.arch)
        target = Target(title=spec.title, spec=spec, bits=spec.default_bits)
        widths = Wish(target=target, arch=spec.arch, weights=Weights(0)).widths
        for bits in [settings.bits] if settings.bits else [bits for bits in widths if bits < WIDE_BITS]:
            wish = wish_for(Target(title=spec.title, spec=spec, bits=bits), spec.arch, Weights(0), settings, mac=mac)
            if wish.context_tokens is not None:
                wish = wish.with_context(min(wish.context_tokens, spec.arch.max_context_tokens))
            yield judge_wish(wish.at_bits(bits), hardware)
