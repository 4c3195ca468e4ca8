"""The whole family on one computer: every member at every width."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from r1mac.catalog.models import all_models
from r1mac.machine.base import HardwareProfile
from r1mac.prepare.measured import load_measured
from r1mac.prepare.planning import Judgement, judge_wish
from r1mac.prepare.target import Target
from r1mac.prepare.wish import Wish

if TYPE_CHECKING:
    from r1mac.catalog.arch import ArchSpec


def judge_family(
    hardware: HardwareProfile, *, bits: int | None = None, kv_bits: int = 16, context_tokens: int | None = None
) -> Iterator[Judgement]:
    """Yield a judgement for each member at each quantised width, small models and wide weights first.

    Models of one shape need the same memory and are as fast: the first of the catalog stands for all. *bits* asks
    for that width only; *context_tokens* is shortened for models that know less.
    """
    measured = load_measured(hardware)
    seen: set[ArchSpec] = set()
    for spec in all_models():
        if spec.arch in seen or spec.packaged is not None:  # the demonstration model is no member
            continue
        seen.add(spec.arch)
        wish = Wish(
            target=Target(title=spec.title, spec=spec, bits=spec.default_bits),
            arch=spec.arch,
            stored_bytes=0,
            context_tokens=min(context_tokens, spec.arch.max_context_tokens) if context_tokens else None,
            kv_bits=kv_bits,
        )
        widths = [width for width in wish.widths if width < 16] if bits is None else [bits]  # noqa: PLR2004
        for width in widths:
            yield judge_wish(wish.at_bits(width), hardware, measured)
