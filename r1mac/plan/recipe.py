"""Which width each tensor of a model gets, and what that makes of its size and of the bytes read for a token."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from typing import Any

from r1mac.catalog.arch import ArchSpec, TensorShape
from r1mac.plan.memory import Quantization, tensor_bytes

WIDE_BITS = 16
_LAYER = r"model\.layers\.(\d+)\."


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """A width for some matrices.

    Attributes:
        tensors: patterns (``fnmatch``, case counts, ``*`` goes over dots) of MLX paths without ``.weight``.
        quantization: 16 bits is «not quantised».
        layers: numbers of the layers that it is for; empty for all.
    """

    tensors: tuple[str, ...]
    quantization: Quantization
    layers: tuple[int, ...] = ()

    def applies_to(self, path: str) -> bool:
        """Tell whether it is for the matrix at *path*, such as ``model.layers.3.mlp.down_proj``."""
        if self.layers:
            match = re.match(_LAYER, path)
            if match is None or int(match[1]) not in self.layers:
                return False
        exact, pattern = _matcher(self.tensors)
        return path in exact or (pattern is not None and pattern.match(path) is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The width of every matrix of a model.

    Attributes:
        name: ``plain`` is one width for all, as ``mlx_lm.convert`` makes it.
        default: width of what no override is for; 16 bits is «not quantised».
        overrides: the first that applies to a matrix decides.
        dtype: type of what is not quantised, of affine scales and of biases; None keeps what the source says.
        models: keys of the catalog's models that it is made for; empty for any model.
        summary: what it does, for a person.
        nominal_bits: the width that it counts as; None for a mix that has none.
        automatic: whether it is what ``--bits`` of that width means for its models.
    """

    name: str
    default: Quantization
    overrides: tuple[Override, ...] = ()
    dtype: str | None = None
    models: tuple[str, ...] = ()
    summary: str = ""
    nominal_bits: int | None = None
    automatic: bool = False

    @property
    def quantizes(self) -> bool:
        """Whether anything is quantised at all."""
        return any(width.bits < WIDE_BITS for width in self.widths)

    @property
    def widths(self) -> tuple[Quantization, ...]:
        """Every width that it has, the default first."""
        return tuple(dict.fromkeys([self.default, *(override.quantization for override in self.overrides)]))

    def width_of(self, path: str) -> Quantization:
        """Return the width that it wants for the matrix at *path*, with or without ``.weight``."""
        module = path.removesuffix(".weight")
        for override in self.overrides:
            if override.applies_to(module):
                return override.quantization
        return self.default

    def quantization_for(self, path: str, shape: tuple[int, ...]) -> Quantization | None:
        """Return how the matrix at *path* is quantised; None if it stays wide.

        It does where the recipe says so, and where the group size does not divide its rows.
        """
        width = self.width_of(path)
        return width if width.bits < WIDE_BITS and shape[-1] % width.group_size == 0 else None


def recipe_bytes(arch: ArchSpec, recipe: Recipe) -> int:
    """Return the bytes of all tensors that a conversion by *recipe* writes, where the source has 16-bit values."""
    return _totals(arch, recipe)[0]


def read_bytes_per_token(arch: ArchSpec, recipe: Recipe) -> float:
    """Return how many of those bytes decoding one token reads: of routed experts a few, of the embedding a row."""
    return _totals(arch, recipe)[1]


def configured_recipe(config: Mapping[str, Any]) -> Recipe | None:
    """Return the widths that an MLX model's config.json states; None where it states none that are understood.

    mlx-lm writes a width for the whole and, where modules differ, one for each by its path, or ``false``.
    """
    stated = config.get("quantization")
    if not isinstance(stated, dict) or (default := _stated_width(stated)) is None:
        return None
    paths_by_width: dict[Quantization, list[str]] = {}
    for path, value in stated.items():
        if value is False:
            paths_by_width.setdefault(Quantization(bits=WIDE_BITS), []).append(path)
        elif isinstance(value, dict):
            if (width := _stated_width(value)) is None:
                return None
            paths_by_width.setdefault(width, []).append(path)
    overrides = (
        Override(tensors=tuple(names), quantization=width)
        for width, names in paths_by_width.items()
        if width != default
    )
    return Recipe(name="as configured", default=default, overrides=tuple(overrides))


def config_entry(recipe: Recipe, widths: Mapping[str, Quantization | None]) -> dict[str, Any] | None:
    """Return what config.json's ``quantization`` says of a model converted by *recipe*; None for 16 bits.

    A plain recipe gives what ``mlx_lm.convert`` writes. A mixed one adds an entry for each matrix whose width is
    not the general one, ``false`` for those that stayed wide, as ``mlx_lm.utils.load_model`` reads them.

    Args:
        recipe: what was asked for.
        widths: what became of each matrix, by its path without ``.weight``.
    """
    general = next((width for width in recipe.widths if width.bits < WIDE_BITS), None)
    if general is None:
        return None
    entry: dict[str, Any] = _as_config(general)
    if recipe.overrides:
        entry |= {
            path: _as_config(width) if width is not None else False
            for path, width in widths.items()
            if width != general
        }
    return entry


def _as_config(width: Quantization) -> dict[str, Any]:
    return {"group_size": width.group_size, "bits": width.bits, "mode": width.mode}


def _stated_width(stated: Mapping[str, Any]) -> Quantization | None:
    bits, group_size, mode = stated.get("bits"), stated.get("group_size"), stated.get("mode", "affine")
    if not isinstance(bits, int) or not isinstance(group_size, int) or not isinstance(mode, str) or group_size <= 0:
        return None
    return Quantization(bits=bits, group_size=group_size, mode=mode)


@cache
def _totals(arch: ArchSpec, recipe: Recipe) -> tuple[int, float]:
    """Return the bytes stored and those read for a token; a table of the whole family asks for them time and again."""
    stored_bytes, read_bytes = 0, 0.0
    for count, tensor, size_bytes in _sizes(arch, recipe):
        stored_bytes += count * size_bytes
        read_bytes += count * size_bytes * tensor.read_share
    return stored_bytes, read_bytes


def _sizes(arch: ArchSpec, recipe: Recipe) -> Iterator[tuple[int, TensorShape, int]]:
    """Yield count, shape and bytes of every tensor; where no layer has a width of its own, those alike are counted."""
    value_bytes = 4 if recipe.dtype == "float32" else 2
    for count, tensor in ((1, tensor) for tensor in arch.tensors) if recipe.overrides else arch.counted_tensors:
        if tensor.role == "float32":
            yield count, tensor, 4 * tensor.size
        else:
            width = recipe.quantization_for(tensor.name, tensor.shape) if tensor.role == "matrix" else None
            yield count, tensor, tensor_bytes(tensor.shape, width, value_bytes=value_bytes)


@cache
def _matcher(tensors: tuple[str, ...]) -> tuple[frozenset[str], re.Pattern[str] | None]:
    """Return the names among *tensors*, and one expression for the patterns."""
    wild = [name for name in tensors if any(sign in name for sign in "*?[")]
    pattern = re.compile("|".join(translate(name) for name in wild)) if wild else None
    return frozenset(tensors) - frozenset(wild), pattern
