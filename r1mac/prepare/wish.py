"""What somebody asks of this computer: a model, at a width, with a context."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from r1mac.catalog.arch import ArchSpec
from r1mac.catalog.models import TYPICAL_ANSWER_TOKENS, ModelSpec
from r1mac.convert.recipe import plain, recipe_for
from r1mac.machine.base import HardwareProfile
from r1mac.plan.fit import MemoryPlan, fit
from r1mac.plan.recipe import Recipe, read_bytes_per_token, recipe_bytes
from r1mac.prepare.target import Target, typed_name


class Weights(NamedTuple):
    """What a model's weights take.

    Attributes:
        stored_bytes: all of them, as they are stored.
        read_bytes: those that decoding a token reads; None where all matrices are of one width, whose mean tells it.
    """

    stored_bytes: int
    read_bytes: float | None = None


def recipe_at(spec: ModelSpec | None, bits: int) -> Recipe:
    """Return what *bits* means for a model of the catalog, or one that it does not know (None).

    What is fetched ready has one width; what is converted here has the model's own recipe, if there is one.
    """
    if spec is None or bits in spec.mlx_repos:
        return plain(bits=bits, group_size=spec.default_group_size if spec else 64)
    return recipe_for(spec.key, bits, group_size=spec.default_group_size)


def weights_by(recipe: Recipe, arch: ArchSpec) -> Weights:
    """Return what the weights of a model of shape *arch* take when they are converted by *recipe*."""
    read_bytes = read_bytes_per_token(arch, recipe) if recipe.overrides else None
    return Weights(stored_bytes=recipe_bytes(arch, recipe), read_bytes=read_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A model and what the plan may not change.

    Attributes:
        stored_bytes: the weights at the width asked for.
        read_bytes: what decoding a token reads of them; None where their mean width tells it.
        context_tokens: None where the plan is free to choose.
        kv_bits: width of the cache.
        most_step_tokens: the longest prefill step to take; None where the plan is free to choose.
        scratch_factor: what this computer's runs showed (``plan.fit.fit``).
    """

    target: Target
    arch: ArchSpec
    stored_bytes: int
    read_bytes: float | None = None
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
        stored_bytes, read_bytes = weights_by(recipe_at(self.target.spec, bits), self.arch)
        target = replace(self.target, bits=bits)
        return replace(self, target=target, stored_bytes=stored_bytes, read_bytes=read_bytes)

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
