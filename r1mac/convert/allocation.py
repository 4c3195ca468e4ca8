"""Bits for each matrix under a budget of bytes: as little divergence as the bytes can buy. Pure."""

import heapq
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from r1mac.plan.memory import Quantization, tensor_bytes
from r1mac.plan.recipe import Override, Recipe


class Choice(NamedTuple):
    """One width that a matrix may have."""

    width: Quantization
    size_bytes: int
    cost: float


def choices_of(shape: tuple[int, ...], costs: Mapping[Quantization, float], *, value_bytes: int = 2) -> list[Choice]:
    """Return the widths of a matrix that are worth their bytes, the smallest first.

    What remains is the lower convex hull: each step to the next one buys less for a byte than the step before.

    Args:
        shape: of the matrix.
        costs: its divergence at each width.
        value_bytes: of a scale.
    """
    all_of_them = [
        Choice(width, tensor_bytes(shape, width, value_bytes=value_bytes), cost) for width, cost in costs.items()
    ]
    kept: list[Choice] = []
    for choice in sorted(all_of_them, key=lambda choice: (choice.size_bytes, choice.cost)):
        if kept and choice.cost >= kept[-1].cost:
            continue
        while len(kept) > 1 and _gain(kept[-1], choice) >= _gain(kept[-2], kept[-1]):
            kept.pop()
        kept.append(choice)
    return kept


def allocate(options: Mapping[str, Sequence[Choice]], budget_bytes: int) -> dict[str, Quantization] | None:
    """Return a width for each matrix, all together at most *budget_bytes*; None where the smallest do not fit.

    Every matrix begins at its smallest width. Then, again and again, the step that saves the most divergence for a
    byte is taken, as long as it fits; steps that are too large are left out, and smaller ones fill the rest.

    Args:
        options: what :func:`choices_of` left, by the path of each matrix.
        budget_bytes: for these matrices.
    """
    chosen = dict.fromkeys(options, 0)
    room_bytes = budget_bytes - sum(choices[0].size_bytes for choices in options.values())
    if room_bytes < 0:
        return None
    steps = [(-_gain(choices[0], choices[1]), path) for path, choices in options.items() if len(choices) > 1]
    heapq.heapify(steps)
    while steps:
        _, path = heapq.heappop(steps)
        choices, number = options[path], chosen[path]
        needed_bytes = choices[number + 1].size_bytes - choices[number].size_bytes
        if needed_bytes > room_bytes:
            continue
        room_bytes -= needed_bytes
        chosen[path] = number + 1
        if number + 2 < len(choices):
            heapq.heappush(steps, (-_gain(choices[number + 1], choices[number + 2]), path))
    return {path: options[path][number].width for path, number in chosen.items()}


def as_recipe(
    widths: Mapping[str, Quantization],
    *,
    name: str,
    summary: str,
    dtype: str | None,
    models: tuple[str, ...] = (),
    default: Quantization | None = None,
) -> Recipe:
    """Return the recipe that gives each matrix its width: one override for each kind and width.

    Args:
        widths: by the path of each matrix.
        name: of the recipe.
        summary: for a person.
        dtype: of what is not quantised.
        models: keys of the catalog's models that it is for; empty for any.
        default: width of what is not in *widths*; None for that of most matrices.
    """
    counts: dict[Quantization, int] = defaultdict(int)
    layers: dict[tuple[str, Quantization], list[int]] = defaultdict(list)
    for path, width in widths.items():
        counts[width] += 1
        parts = path.split(".")
        if parts[:2] == ["model", "layers"]:
            layers[f"model.layers.*.{'.'.join(parts[3:])}", width].append(int(parts[2]))
        else:
            layers[path, width] = []
    default = default or max(counts, key=lambda width: counts[width])
    overrides = [
        Override(tensors=(pattern,), quantization=width, layers=tuple(sorted(numbers)))
        for (pattern, width), numbers in sorted(layers.items())
        if width != default
    ]
    return Recipe(name=name, default=default, overrides=tuple(overrides), dtype=dtype, summary=summary, models=models)


def recipe_text(recipe: Recipe) -> str:
    """Return *recipe* as the TOML file that ``convert.recipe_file`` reads."""
    lines = [f"summary = {json.dumps(recipe.summary, ensure_ascii=False)}"]
    if recipe.models:
        lines.append(f"models = {json.dumps(recipe.models)}")
    if recipe.dtype is not None:
        lines.append(f'dtype = "{recipe.dtype}"')
    lines += ["", "[quantize]", *_width_lines(recipe.default)]
    for override in recipe.overrides:
        lines += ["", "[[quantize.override]]"]
        lines.append(f"tensors = {json.dumps(override.tensors)}")
        if override.layers:
            lines.append(f"layers = {json.dumps(override.layers)}")
        lines += _width_lines(override.quantization)
    return "\n".join(lines) + "\n"


def _width_lines(width: Quantization) -> list[str]:
    return [f"bits = {width.bits}", f"group_size = {width.group_size}"]


def _gain(before: Choice, after: Choice) -> float:
    """Return the divergence that a step saves for a byte."""
    return (before.cost - after.cost) / (after.size_bytes - before.size_bytes)
