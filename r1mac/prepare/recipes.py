"""What each recipe makes of a model on one computer: size, and whether it fits and how fast it would be."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from r1mac.catalog.models import ModelSpec, all_models
from r1mac.convert.recipe import plain, shipped_recipes
from r1mac.machine.base import HardwareProfile
from r1mac.plan.memory import FLOAT_WIDTHS
from r1mac.plan.recipe import Recipe
from r1mac.prepare.measured import load_measured
from r1mac.prepare.planning import Judgement, judge_wish
from r1mac.prepare.target import Target
from r1mac.prepare.wish import Wish, weights_by

if TYPE_CHECKING:
    from r1mac.catalog.arch import ArchSpec

_PLAIN_WIDTHS: tuple[int | str, ...] = (8, "mxfp8", 6, 5, 4, "mxfp4", "nvfp4", 3, 2)


class JudgedRecipe(NamedTuple):
    """A recipe, the model that it is for, and what becomes of the result here."""

    recipe: Recipe
    spec: ModelSpec
    judgement: Judgement


def judge_recipes(hardware: HardwareProfile, spec: ModelSpec | None = None) -> Iterator[JudgedRecipe]:
    """Yield every recipe that r1mac has for the model *spec*, one width for all included, widest first.

    Without a model: the recipes that r1mac has, for each of their models; those of one shape are told once.
    """
    measured = load_measured(hardware)
    if spec is not None:
        own = [recipe for recipe in shipped_recipes() if spec.key in recipe.models]
        pairs = [(spec, recipe) for recipe in (*(_plain(spec, width) for width in _PLAIN_WIDTHS), *own)]
    else:
        pairs = [(model, recipe) for model in _shapes() for recipe in shipped_recipes() if model.key in recipe.models]
    judged = []
    for model, recipe in pairs:
        wish = Wish(
            target=Target(title=model.title, spec=model, bits=recipe.nominal_bits),
            arch=model.arch,
            weights=weights_by(recipe, model.arch),
        )
        judged.append(JudgedRecipe(recipe, model, judge_wish(wish, hardware, measured)))
    places = {model.key: place for place, model in enumerate(all_models())}
    yield from sorted(judged, key=lambda item: (places[item.spec.key], -item.judgement.wish.weights.stored_bytes))


def _plain(spec: ModelSpec, width: int | str) -> Recipe:
    return plain(bits=width, group_size=None if width in FLOAT_WIDTHS else spec.default_group_size)


def _shapes() -> Iterator[ModelSpec]:
    seen: set[ArchSpec] = set()
    for model in all_models():
        if model.arch not in seen:
            seen.add(model.arch)
            yield model
