"""Frozen dataclasses as JSON values and back, every type checked: what a file says is not believed."""

import dataclasses
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Return *value* made of dicts, lists, strings, numbers, booleans and None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], value: Any) -> T:
    """Return the *kind* that ``to_json`` made *value* of; a field that is absent has its default.

    Raises:
        ValueError: *value* is not one of that kind.
    """
    checked: T = _checked(kind, value)
    return checked


def _checked(kind: Any, value: Any) -> Any:
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value)
    if origin is tuple:
        return _tuple(get_args(kind), value)
    if origin in {Union, types.UnionType}:
        return _one_of(get_args(kind), value)
    if origin is Literal:
        # 1 is True to Python, and not to JSON.
        if not any(value == option and type(value) is type(option) for option in get_args(kind)):
            raise ValueError(f"{value!r} is none of {get_args(kind)}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind in {int, float, str, bool, types.NoneType} and type(value) is kind:
        return value
    raise ValueError(f"{value!r} is not {kind!r}")


def _dataclass(kind: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not an object")  # noqa: TRY004 - to its reader a file has values, no types
    hints = get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(value.keys() - known):
        raise ValueError(f"{kind.__name__} has no {unknown[0]!r}")
    try:
        return kind(**{name: _checked(hints[name], item) for name, item in value.items()})
    except TypeError as error:  # a field without a default is absent
        raise ValueError(str(error)) from error


def _tuple(kinds: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")  # noqa: TRY004
    if len(kinds) == 2 and kinds[1] is Ellipsis:  # noqa: PLR2004
        return tuple(_checked(kinds[0], item) for item in value)
    if len(kinds) != len(value):
        raise ValueError(f"{value!r} is not a list of {len(kinds)}")
    return tuple(_checked(kind, item) for kind, item in zip(kinds, value, strict=True))


def _one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    for kind in kinds:
        try:
            return _checked(kind, value)
        except ValueError as error:
            reason = error
    raise reason
