"""Does what a name means fit this machine, how fast would it be, and what would help? Nothing is fetched for that."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from r1mac.catalog.arch import SUPPORTED_MODEL_TYPES, ArchSpec, parse_arch
from r1mac.errors import BadCheckpoint, DoesNotFit
from r1mac.machine.base import HardwareProfile
from r1mac.plan.fit import MemoryPlan
from r1mac.plan.recipe import configured_recipe, read_bytes_per_token
from r1mac.prepare.remedies import Remedy, binding_limit, find_remedies, most_bits
from r1mac.prepare.target import Target, described, find_stored
from r1mac.prepare.wish import Weights, Wish, recipe_at, weights_by, wish_for
from r1mac.settings import Settings
from r1mac.units import MIB, format_memory

if TYPE_CHECKING:
    from r1mac.plan.speed import Speed
    from r1mac.prepare.measured import Measured


class Judgement(NamedTuple):
    """What becomes of a wish on one computer.

    Attributes:
        speed: None where nothing is known of the chip.
    """

    wish: Wish
    hardware: HardwareProfile
    plan: MemoryPlan
    speed: "Speed | None"

    @property
    def can_run(self) -> bool:
        """Whether memory and the model allow it."""
        return self.plan.fits and self.plan.context_tokens <= self.wish.arch.max_context_tokens

    @property
    def fits_when_tuned(self) -> bool:
        """Whether only the GPU's wired limit is in the way, and ``r1mac tune`` would raise it far enough."""
        raised = tuned_machine(self.hardware)
        return not self.can_run and raised is not None and self.wish.plan(raised).fits

    @property
    def binding_limit(self) -> str:
        """What decides how long the context can be."""
        return binding_limit(self.wish, self.plan, tuned_machine(self.hardware))

    @property
    def most_bits(self) -> int | None:
        """The widest weights that fit with the context asked for."""
        return most_bits(self.wish, self.hardware)

    def remedies(self) -> tuple[Remedy, ...]:
        """Return what would help, if it does not fit."""
        return find_remedies(self.wish, self.hardware, tuned_machine(self.hardware)) if not self.can_run else ()

    @property
    def problem(self) -> str:
        """Why it cannot be run, if it cannot, in a sentence with the numbers."""
        title, known, plan = described(self.wish.target), self.wish.arch.max_context_tokens, self.plan
        if plan.context_tokens > known:
            return f"{title} knows contexts of at most {known} tokens, and {plan.context_tokens} were asked for"
        return (
            f"{title} needs {format_memory(plan.total_bytes)} with {plan.context_tokens} tokens of context, and the "
            f"machine has {format_memory(plan.budget_bytes)} for it"
        )

    def require(self) -> None:
        """Raise if it cannot be run.

        Raises:
            DoesNotFit: with the numbers; the hint names what can be run here.
        """
        if self.can_run:
            return
        help_there_is = "\n".join(f"`{remedy.command}`: {remedy.effect}" for remedy in self.remedies())
        raise DoesNotFit(self.problem, hint=help_there_is or "no member of the family fits this machine")


def judge(target: Target, settings: Settings, hardware: HardwareProfile, *, mac: str | None = None) -> Judgement:
    """Return plan and forecast of what *target* means, from the nearest source of its shape.

    *mac* is how the person called a computer that is not this one.

    Raises:
        BadCheckpoint: its config.json is not that of a model that r1mac runs.
        R1MacError: it has to be asked for on the Hub, and that failed.
    """
    arch, weights = _shape(target, settings)
    wish = wish_for(target, arch, weights, settings, mac=mac)
    return judge_wish(wish, hardware)


def judge_wish(wish: Wish, hardware: HardwareProfile, measured: "Measured | None" = None) -> Judgement:
    """Return plan and forecast of *wish* on *hardware*.

    *measured* is what its own runs showed, if the caller knows it already.
    """
    if hardware.system != "macos":
        # Nothing is forecast there, and the memory formulas were measured on such a computer.
        return Judgement(wish=wish, hardware=hardware, plan=wish.plan(hardware), speed=None)
    from r1mac.plan.speed import forecast
    from r1mac.prepare.measured import load_measured

    measured = measured or load_measured(hardware)
    wish = replace(wish, scratch_factor=measured.scratch_factor(wish.arch))
    plan = wish.plan(hardware)
    speed = forecast(
        wish.arch,
        hardware,
        stored_bytes=plan.weight_bytes,
        kv_bytes_per_token=plan.kv_bytes_per_token,
        read_bytes=wish.weights.read_bytes,
        step_tokens=plan.prefill_step_tokens,
        calibration=measured.calibration,
    )
    return Judgement(wish=wish, hardware=hardware, plan=plan, speed=speed)


def tuned_machine(hardware: HardwareProfile) -> HardwareProfile | None:
    """Return the same computer with the highest limit that ``r1mac tune`` would set; None where it would set none."""
    if hardware.system != "macos":
        return None
    from r1mac.plan.tune import limits_of

    highest_bytes = limits_of(hardware).highest_mib * MIB
    if highest_bytes <= hardware.wired_limit_bytes:
        return None
    return replace(hardware, wired_limit_bytes=highest_bytes, wired_limit_source="override")


def _shape(target: Target, settings: Settings) -> tuple[ArchSpec, Weights]:
    """Return the model's shape and what its weights take, on this disk or once they are there."""
    stored = find_stored(target, settings)
    local = stored.path if stored else target.folder
    if local is not None:
        from r1mac.formats import folder as model_folder

        config = model_folder.read_config(local)
        arch = arch_of(config, str(local))
        return arch, _as_they_are(arch, config, sum(path.stat().st_size for path in model_folder.weight_files(local)))
    if target.spec is not None:
        return target.spec.arch, weights_by(recipe_at(target.spec, target.bits or 16), target.spec.arch)
    return _remote_shape(target)


def _remote_shape(target: Target) -> tuple[ArchSpec, Weights]:
    """Return the shape of a Hub repository's model, and what its weights take once they are stored."""
    from r1mac.formats.folder import PREDICTION_STEM
    from r1mac.hub import download

    repo = target.repo or target.convert_from
    assert repo is not None
    config = download.fetch_config(repo)
    arch = arch_of(config, repo)
    if target.bits is not None and "quantization" not in config:
        return arch, weights_by(recipe_at(None, target.bits), arch)
    files = download.select_files(download.list_files(repo))
    weights = (file for file in files if file.name.endswith(".safetensors"))
    stored_bytes = sum(file.size_bytes for file in weights if not file.name.startswith(PREDICTION_STEM))
    return arch, _as_they_are(arch, config, stored_bytes)


def _as_they_are(arch: ArchSpec, config: dict[str, Any], stored_bytes: int) -> Weights:
    """Return what weights take that are made already: their config.json says where widths differ."""
    recipe = configured_recipe(config)
    mixed = recipe is not None and recipe.overrides
    return Weights(stored_bytes, read_bytes_per_token(arch, recipe) if recipe is not None and mixed else None)


def arch_of(config: dict[str, Any], where: str) -> ArchSpec:
    """Return the shape in a config.json.

    Raises:
        BadCheckpoint: it is not that of a model that r1mac runs.
    """
    try:
        return parse_arch(config)
    except KeyError as error:
        raise BadCheckpoint(f"the config.json of {where} lacks {error.args[0]}", hint="fetch it again") from error
    except ValueError as error:
        raise BadCheckpoint(
            f"r1mac cannot run {where}: {error}", hint=f"it runs {', '.join(SUPPORTED_MODEL_TYPES)}"
        ) from error
