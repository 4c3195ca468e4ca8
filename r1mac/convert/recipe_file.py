"""A recipe as a TOML file: read, and every mistake in it named with its place."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1mac.catalog.models import all_models, find
from r1mac.convert.widths import BITS, checked_dtype, checked_width, listed
from r1mac.errors import BadRecipe
from r1mac.plan.memory import Quantization
from r1mac.plan.recipe import Override, Recipe

SUFFIX = ".toml"

_FIELDS = {"model", "models", "summary", "nominal_bits", "automatic", "dtype", "quantize"}
_WIDTH_FIELDS = {"bits", "group_size", "mode"}
_OVERRIDE_TABLE = r"^\s*\[\[\s*quantize\s*\.\s*override\s*\]\]"


def load_recipe(path: Path) -> Recipe:
    """Return the recipe in a TOML file.

    Raises:
        BadRecipe: it cannot be read, or something in it is wrong; file, line or field and what is known are named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadRecipe(f"cannot read the recipe {path}: {reason}", hint="check the path") from error
    return parse_recipe(text, name=path.stem, where=str(path))


def parse_recipe(text: str, *, name: str, where: str) -> Recipe:
    """Return the recipe that TOML *text* describes.

    Args:
        text: contents of the file; conversions/README.md has the fields.
        name: what the recipe is called.
        where: the file, for error texts.

    Raises:
        BadRecipe: as load_recipe does.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadRecipe(f"{where} is not valid TOML: {error}", hint="correct that line") from error
    _check_fields(data, _FIELDS, where)
    quantize = data.get("quantize")
    if not isinstance(quantize, dict):
        raise BadRecipe(f"{where} has no table [quantize]", hint="write [quantize], and below it bits = 4")
    _check_fields(quantize, _WIDTH_FIELDS | {"override"}, f"{where}, [quantize]")
    default = checked_width(quantize, where=f"{where}, [quantize]: ")
    overrides = _overrides(quantize.get("override", []), default, text, where)
    return Recipe(
        name=name,
        default=default,
        overrides=overrides,
        dtype=checked_dtype(data.get("dtype"), where=f"{where}: "),
        models=_models(data, where),
        summary=_text(data.get("summary", ""), "summary", where),
        nominal_bits=_nominal_bits(data.get("nominal_bits", None if overrides else default.bits), where),
        automatic=_automatic(data, where),
    )


def _overrides(tables: Any, default: Quantization, text: str, where: str) -> tuple[Override, ...]:
    if not isinstance(tables, list):
        raise BadRecipe(f"{where}: override is not a list of tables", hint="write [[quantize.override]]")
    lines = [number for number, line in enumerate(text.splitlines(), start=1) if re.match(_OVERRIDE_TABLE, line)]
    found = []
    for index, table in enumerate(tables):
        place = f"line {lines[index]}" if len(lines) == len(tables) else f"override {index + 1}"
        found.append(_override(table, default, f"{where}, {place}"))
    return tuple(found)


def _override(table: Any, default: Quantization, where: str) -> Override:
    if not isinstance(table, dict):
        raise BadRecipe(f"{where}: an override is a table", hint="write [[quantize.override]]")
    _check_fields(table, _WIDTH_FIELDS | {"tensors", "layers"}, where)
    patterns = table.get("tensors")
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, list) or not patterns or not all(isinstance(item, str) and item for item in patterns):
        raise BadRecipe(
            f"{where}: tensors is {patterns!r}, not a pattern or a list of them", hint='such as tensors = "*.v_proj"'
        )
    layers = table.get("layers", [])
    if not isinstance(layers, list) or not all(type(item) is int and item >= 0 for item in layers):
        raise BadRecipe(f"{where}: layers is {layers!r}, not a list of layers' numbers", hint="such as layers = [3, 4]")
    # What an override does not say about groups is as in [quantize].
    affine = "mode" not in table and default.mode == "affine"
    width = checked_width(({"group_size": default.group_size} if affine else {}) | table, where=f"{where}: ")
    return Override(
        tensors=tuple(item.removesuffix(".weight") for item in patterns), quantization=width, layers=tuple(layers)
    )


def _models(data: Mapping[str, Any], where: str) -> tuple[str, ...]:
    names = data.get("models", [data["model"]] if "model" in data else [])
    if not isinstance(names, list) or ("model" in data and "models" in data):
        raise BadRecipe(f"{where}: models is a list of names", hint='such as models = ["671b"]; leave out model')
    keys = []
    for name in names:
        spec = find(name) if isinstance(name, str) else None
        if spec is None:
            known = tuple(model.key for model in all_models())
            raise BadRecipe(f"{where}: {name!r} is not a model of the catalog", hint=f"known: {listed(known)}")
        keys.append(spec.key)
    return tuple(keys)


def _nominal_bits(value: Any, where: str) -> int | None:
    if value is not None and (type(value) is not int or value not in BITS):
        raise BadRecipe(f"{where}: nominal_bits is {value!r}", hint=f"use one of {listed(BITS)}, or leave it out")
    return None if value is None else int(value)


def _automatic(data: Mapping[str, Any], where: str) -> bool:
    value = data.get("automatic", False)
    if not isinstance(value, bool):
        raise BadRecipe(f"{where}: automatic is {value!r}", hint="write true or false")
    if value and ("nominal_bits" not in data or not {"model", "models"} & data.keys()):
        raise BadRecipe(
            f"{where}: an automatic recipe has models and nominal_bits", hint="add them, or leave out automatic"
        )
    return value


def _text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise BadRecipe(f"{where}: {field} is {value!r}, not text", hint="put it between quotes")
    return value


def _check_fields(table: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(table.keys() - known):
        raise BadRecipe(f"{where} has an unknown field {unknown[0]!r}", hint=f"known: {listed(tuple(sorted(known)))}")
