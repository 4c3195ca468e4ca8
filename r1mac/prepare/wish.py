"""What somebody asks of a computer: a model, at a width, with a context."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from r1mac.catalog.arch import ArchSpec
from r1mac.catalog.models import TYPICAL_ANSWER_TOKENS, ModelSpec
from r1mac.convert.recipe import plain, recipe_for
from r1mac.errors import BadSettings
from r1mac.machine.base import HardwareProfile
from r1mac.plan.fit import TYPICAL_PROMPT_TOKENS, MemoryPlan, fit
from r1mac.plan.recipe import WIDE_BITS, Recipe, read_bytes_per_token, recipe_bytes
from r1mac.prepare.target import Target, settings_names, typed_name
from r1mac.settings import Settings


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
        weights: at the width asked for.
        context_tokens: None where the plan is free to choose.
        kv_bits: width of the cache.
        most_step_tokens: the longest prefill step to take; None where the plan is free to choose.
        scratch_factor: what this computer's runs showed (``plan.fit.fit``).
        parallel: how many replies are to be written at once.
        settings: where the wish comes from, so that a command says what has to be said.
        mac: the words for a computer that is not this one.
    """

    target: Target
    arch: ArchSpec
    weights: Weights
    context_tokens: int | None = None
    kv_bits: int = WIDE_BITS
    most_step_tokens: int | None = None
    scratch_factor: float = 1.0
    parallel: int = 1
    settings: Settings = field(default_factory=Settings)
    mac: str | None = None

    def plan(self, hardware: HardwareProfile) -> MemoryPlan:
        """Return its plan on *hardware*."""
        return fit(
            self.arch,
            hardware,
            stored_bytes=self.weights.stored_bytes,
            context_tokens=self.context_tokens,
            kv_bits=self.kv_bits,
            most_step_tokens=self.most_step_tokens,
            scratch_factor=self.scratch_factor,
            parallel=self.parallel,
        )

    def with_context(self, context_tokens: int) -> "Wish":
        """Return the same wish with another context."""
        return replace(self, context_tokens=context_tokens)

    def at_bits(self, bits: int) -> "Wish":
        """Return the same wish with weights of another width."""
        weights = weights_by(recipe_at(self.target.spec, bits), self.arch)
        return replace(self, target=replace(self.target, bits=bits), weights=weights)

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
            "--parallel": self.parallel if self.parallel != (unsaid.parallel or 1) else None,
        }
        said = "".join(f" {name} {value}" for name, value in options.items() if value is not None)
        if self.mac is not None and verb == "run":
            import shlex

            return f"r1mac plan {self.name}{said} --mac {shlex.quote(self.mac)}"
        return f"r1mac {verb} {self.name}{said}"


def wish_for(target: Target, arch: ArchSpec, weights: Weights, settings: Settings, *, mac: str | None = None) -> Wish:
    """Return what *settings* ask for of a model.

    Raises:
        BadSettings: several replies at once, with a cache that has to be wide for that and is not.
    """
    own = settings.for_model(*settings_names(target), bits=target.bits)
    context = own.context_tokens
    if context is not None and "context_tokens" not in settings.said:
        # A preference for all models; only what was asked for this one may be refused.
        context = min(context, arch.max_context_tokens)
    parallel, kv_bits = own.parallel or 1, own.kv_bits or WIDE_BITS
    if parallel > 1 and kv_bits != WIDE_BITS:
        raise BadSettings(
            f"{parallel} replies at once share a cache of 16 bits, and one of {kv_bits} bits was asked for",
            hint="leave out --parallel, or say --kv-bits 16",
        )
    return Wish(
        target=target,
        arch=arch,
        weights=weights,
        context_tokens=context,
        kv_bits=kv_bits,
        most_step_tokens=own.prefill_step_tokens,
        parallel=parallel,
        settings=settings,
        mac=mac,
    )
