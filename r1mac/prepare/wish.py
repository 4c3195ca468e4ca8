"""What somebody asks of this computer: a model, at a width, with a context."""

from dataclasses import dataclass, replace

from r1mac.catalog.arch import ArchSpec
from r1mac.catalog.models import TYPICAL_ANSWER_TOKENS
from r1mac.machine.base import HardwareProfile
from r1mac.plan.fit import MemoryPlan, fit
from r1mac.plan.memory import Quantization, weight_bytes
from r1mac.prepare.target import Target, typed_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A model and what the plan may not change.

    Attributes:
        stored_bytes: the weights at the width asked for.
        context_tokens: None where the plan is free to choose.
        kv_bits: width of the cache.
        most_step_tokens: the longest prefill step to take; None where the plan is free to choose.
        scratch_factor: what this computer's runs showed (``plan.fit.fit``).
    """

    target: Target
    arch: ArchSpec
    stored_bytes: int
    context_tokens: int | None = None
    kv_bits: int = 16
    most_step_tokens: int | None = None
    scratch_factor: float = 1.0

    def plan(self, hardware: HardwareProfile) -> MemoryPlan:
        """Return its plan on *hardware*."""
        return fit(
            self.arch,
            hardware,
            stored_bytes=self.stored_bytes,
            context_tokens=self.context_tokens,
            kv_bits=self.kv_bits,
            most_step_tokens=self.most_step_tokens,
            scratch_factor=self.scratch_factor,
        )

    def at_bits(self, bits: int) -> "Wish":
        """Return the same wish with weights of another width."""
        group_size = self.target.spec.default_group_size if self.target.spec else 64
        stored_bytes = weight_bytes(self.arch, Quantization(bits=bits, group_size=group_size))
        return replace(self, target=replace(self.target, bits=bits), stored_bytes=stored_bytes)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths that the model can be had in, widest first: none for weights that are as they are.

        2 bits are offered for mixtures of experts only: plain rounding to so few costs a dense model too much.
        """
        if self.target.bits is None or self.target.folder is not None:
            return ()
        return (16, 8, 6, 4, 3, 2) if self.arch.experts is not None else (16, 8, 6, 4, 3)

    @property
    def name(self) -> str:
        """What to type for the model."""
        return typed_name(self.target)

    @property
    def typical_answer_tokens(self) -> int:
        """How much the model writes on a hard problem, thought included."""
        return self.target.spec.typical_answer_tokens if self.target.spec else TYPICAL_ANSWER_TOKENS

    def command_line(self, verb: str) -> str:
        """Return the command that asks for it, such as ``r1mac run 70b --bits 3``."""
        spec, bits = self.target.spec, self.target.bits
        options = {
            "--bits": bits if spec is None or bits != spec.default_bits else None,
            "--kv-bits": self.kv_bits if self.kv_bits != 16 else None,  # noqa: PLR2004
            "--context": self.context_tokens,
        }
        said = "".join(f" {name} {value}" for name, value in options.items() if value is not None)
        return f"r1mac {verb} {self.name}{said}"
