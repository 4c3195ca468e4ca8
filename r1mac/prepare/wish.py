"""What somebody asks of a computer: a model, at a width, with a context."""

from dataclasses import dataclass, field, replace

from r1mac.catalog.arch import ArchSpec
from r1mac.catalog.models import TYPICAL_ANSWER_TOKENS
from r1mac.machine.base import HardwareProfile
from r1mac.plan.fit import TYPICAL_PROMPT_TOKENS, MemoryPlan, fit
from r1mac.plan.memory import Quantization, weight_bytes
from r1mac.prepare.target import Target, settings_names, typed_name
from r1mac.settings import Settings

WIDE_BITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A model and what the plan may not change.

    Attributes:
        stored_bytes: the weights at the width asked for.
        context_tokens: None where the plan is free to choose.
        kv_bits: width of the cache.
        most_step_tokens: the longest prefill step to take; None where the plan is free to choose.
        scratch_factor: what this computer's runs showed (``plan.fit.fit``).
        settings: where the wish comes from, so that a command says what has to be said.
        mac: the words for a computer that is not this one.
    """

    target: Target
    arch: ArchSpec
    stored_bytes: int
    context_tokens: int | None = None
    kv_bits: int = WIDE_BITS
    most_step_tokens: int | None = None
    scratch_factor: float = 1.0
    settings: Settings = field(default_factory=Settings)
    mac: str | None = None

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

    def with_context(self, context_tokens: int) -> "Wish":
        """Return the same wish with another context."""
        return replace(self, context_tokens=context_tokens)

    def at_bits(self, bits: int) -> "Wish":
        """Return the same wish with weights of another width."""
        target = replace(self.target, bits=bits)
        group_size = target.spec.default_group_size if target.spec else 64
        stored_bytes = weight_bytes(self.arch, Quantization(bits=bits, group_size=group_size))
        return replace(self, target=target, stored_bytes=stored_bytes)

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

    @property
    def useful_context_tokens(self) -> int:
        """The context in which a typical answer ends; less where less was asked for, or the model knows less."""
        useful = min(TYPICAL_PROMPT_TOKENS + self.typical_answer_tokens, self.arch.max_context_tokens)
        return min(useful, self.context_tokens or useful)

    def command_line(self, verb: str) -> str:
        """Return the command that asks for it, such as ``r1mac run 70b --bits 3``.

        It says what would be otherwise without a word, by the user's settings or by r1mac's own choice.
        """
        bits, spec = self.target.bits, self.target.spec
        unsaid = self.settings.without_flags().for_model(*settings_names(self.target))
        usual_bits = unsaid.bits or (spec.default_bits if spec else None)
        unsaid = self.settings.without_flags().for_model(*settings_names(self.target), bits=bits)
        # tune chooses a cache's width itself unless one is said.
        kv_bits_said = verb == "tune" and "kv_bits" in self.settings.said
        options = {
            "--bits": bits if bits != usual_bits else None,
            "--kv-bits": self.kv_bits if kv_bits_said or self.kv_bits != (unsaid.kv_bits or WIDE_BITS) else None,
            "--context": self.context_tokens if self.context_tokens != unsaid.context_tokens else None,
        }
        said = "".join(f" {name} {value}" for name, value in options.items() if value is not None)
        if self.mac is not None and verb == "run":
            import shlex

            return f"r1mac plan {self.name}{said} --mac {shlex.quote(self.mac)}"
        return f"r1mac {verb} {self.name}{said}"


def wish_for(target: Target, arch: ArchSpec, stored_bytes: int, settings: Settings, *, mac: str | None = None) -> Wish:
    """Return what *settings* ask for of a model."""
    own = settings.for_model(*settings_names(target), bits=target.bits)
    context = own.context_tokens
    if context is not None and "context_tokens" not in settings.said:
        # A preference for all models; only what was asked for this one may be refused.
        context = min(context, arch.max_context_tokens)
    return Wish(
        target=target,
        arch=arch,
        stored_bytes=stored_bytes,
        context_tokens=context,
        kv_bits=own.kv_bits or WIDE_BITS,
        most_step_tokens=own.prefill_step_tokens,
        settings=settings,
        mac=mac,
    )
