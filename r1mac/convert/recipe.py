"""What a conversion makes of each tensor: one width for all, or a recipe that says it in TOML."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from r1mac import paths
from r1mac.catalog.arch import ArchSpec
from r1mac.catalog.models import ModelSpec, all_models
from r1mac.convert.recipe_file import SUFFIX, load_recipe
from r1mac.convert.widths import BITS, DTYPES, GROUP_SIZES, MODES, checked_dtype, checked_width, listed, parsed_bits
from r1mac.errors import BadRecipe
from r1mac.plan.memory import FLOAT_WIDTHS
from r1mac.plan.recipe import Override, Recipe, config_entry

__all__ = ["BITS", "DTYPES", "GROUP_SIZES", "MODES", "Override", "Recipe", "config_entry", "load_recipe"]


def plain(*, bits: int | str, group_size: int | None = None, dtype: str | None = None) -> Recipe:
    """Return the recipe of one width for every matrix.

    Args:
        bits: a number of BITS, as text too, or the name of a floating-point mode, which has a group size of its own.
        group_size: weights that share a scale; 64 where it is not said.
        dtype: type of what is not quantised.

    Raises:
        BadRecipe: MLX has no such width, group size or type.
    """
    fields: dict[str, Any] = {"mode": bits} if bits in FLOAT_WIDTHS else {"bits": parsed_bits(bits)}
    width = checked_width(fields | ({} if group_size is None else {"group_size": group_size}))
    return Recipe(name="plain", default=width, dtype=checked_dtype(dtype), nominal_bits=width.bits)


@cache
def shipped_recipes() -> tuple[Recipe, ...]:
    """Return the recipes that r1mac has, by name.

    Raises:
        BadRecipe: one of them is damaged.
    """
    found = (load_recipe(path) for path in paths.recipes_dir().glob(f"*{SUFFIX}"))
    return tuple(sorted(found, key=lambda recipe: recipe.name))


def find_recipe(name: str) -> Recipe:
    """Return the recipe that *name* means: one that r1mac has, or a TOML file, whose name ends so or has a slash.

    Raises:
        BadRecipe: there is neither, or the file is wrong.
    """
    if name.endswith(SUFFIX) or "/" in name:
        return load_recipe(paths.expanded(Path(name)))
    if found := next((recipe for recipe in shipped_recipes() if recipe.name == name), None):
        return found
    known = listed(tuple(recipe.name for recipe in shipped_recipes()))
    raise BadRecipe(f"there is no recipe {name!r}", hint=f"r1mac has {known}; or name a file, such as ./mine{SUFFIX}")


def automatic_recipe(model_key: str, bits: int) -> Recipe | None:
    """Return the recipe that --bits means for a model of the catalog; None where that is one width for all."""
    for recipe in shipped_recipes():
        if recipe.automatic and recipe.nominal_bits == bits and model_key in recipe.models:
            return recipe
    return None


def recipe_for(model_key: str | None, bits: int, *, group_size: int = 64) -> Recipe:
    """Return what a conversion to *bits* means where nothing else is said.

    Args:
        model_key: the model's key in the catalog; None for weights that it does not know.
        bits: width asked for.
        group_size: of the plain recipe, where the model has none of its own.
    """
    found = automatic_recipe(model_key, bits) if model_key is not None else None
    return found or plain(bits=bits, group_size=group_size)


def choose_recipe(
    *,
    named: str | None = None,
    bits: int | str | None = None,
    group_size: int | None = None,
    dtype: str | None = None,
    spec: ModelSpec | None = None,
) -> Recipe:
    """Return the recipe that a command line asks for; None is «not said».

    Args:
        named: ``plain``, the name of a recipe that r1mac has, or a file.
        bits: as for plain; 4 where nothing is said. A model's own recipe of that width goes before one width for all.
        group_size: makes it one width for all.
        dtype: goes before the recipe's own.
        spec: the model of the catalog that is converted, if it is one.

    Raises:
        BadRecipe: there is no such recipe or width, or two options contradict each other.
    """
    if named is not None and named != "plain":
        if bits is not None or group_size is not None:
            raise BadRecipe(
                f"the recipe {named} says all widths itself", hint="leave out --bits and --group-size, or --recipe"
            )
        recipe = find_recipe(named)
    else:
        width = bits if bits in FLOAT_WIDTHS else parsed_bits(4 if bits is None else bits)
        own = group_size or (spec.default_group_size if spec and width not in FLOAT_WIDTHS else None)
        recipe = plain(bits=width, group_size=own, dtype=dtype)
        if named is None and group_size is None and spec is not None and isinstance(width, int):
            recipe = automatic_recipe(spec.key, width) or recipe
    return recipe if dtype is None else replace(recipe, dtype=checked_dtype(dtype))


def check_recipe(recipe: Recipe, arch: ArchSpec) -> None:
    """Refuse a recipe that was made for other models, or has an override that no matrix of this one needs.

    Vocabulary and context do not count: a finetune may have others.

    Raises:
        BadRecipe: with the override or the models.
    """
    known = {model.key: model.arch for model in all_models()}
    if recipe.models and all(_layers_of(known[key]) != _layers_of(arch) for key in recipe.models):
        raise BadRecipe(
            f"the recipe {recipe.name} is for {listed(recipe.models)}, and these weights have other layers",
            hint="copy the recipe without its models, correct the paths in it, and name the copy: --recipe FILE",
        )
    matrices = [tensor.name.removesuffix(".weight") for tensor in arch.tensors if tensor.role == "matrix"]
    for number, override in enumerate(recipe.overrides, start=1):
        mine = [path for path in matrices if override.applies_to(path)]
        matrices = [path for path in matrices if not override.applies_to(path)]
        if not mine:
            raise BadRecipe(
                f"override {number} of the recipe {recipe.name} ({listed(override.tensors)}) is for no matrix of this "
                "model that the overrides before it leave",
                hint=f"paths are like {arch.tensors[-3].name.removesuffix('.weight')}; `r1mac show` tells the layers",
            )


def _layers_of(arch: ArchSpec) -> tuple[Any, ...]:
    return (arch.model_type, arch.layer_count, arch.hidden_size, arch.intermediate_size, arch.attention, arch.experts)
