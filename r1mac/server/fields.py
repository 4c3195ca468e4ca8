"""The fields of a request, each with the type that it must have; what is wrong is named as the client wrote it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from r1mac.server.asked import BadRequest

# Beyond 64 bits no number of a request means anything, and C libraries cannot hold it.
_MOST_INTEGER = 2**63 - 1


class Fields:
    """A JSON object of a request. A field that is null is one that was left out; others than those read are ignored."""

    def __init__(self, values: Mapping[str, Any], at: str = "") -> None:
        self.values = values
        self.at = at

    def where(self, name: str) -> str:
        """Return the field's whole name, such as ``messages[0].content``."""
        return f"{self.at}.{name}" if self.at else name

    def bad(self, name: str, problem: str) -> BadRequest:
        """Return the error that says *problem* of a field."""
        field = self.where(name)
        return BadRequest(f"{field} {problem}", field=field)

    def has(self, name: str) -> bool:
        """Return whether the field says anything."""
        return self.values.get(name) is not None

    def text(self, name: str) -> str | None:
        """Return a string."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.bad(name, f"must be a string, and is {_kind(value)}")
        return value

    def needed_text(self, name: str) -> str:
        """Return a string that must be there."""
        value = self.text(name)
        if value is None:
            raise self.bad(name, "is missing")
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        """Return one of some words."""
        value = self.text(name)
        if value is not None and value not in choices:
            raise self.bad(name, f"must be one of {', '.join(choices)}, and is «{value[:40]}»")
        return value

    def boolean(self, name: str) -> bool | None:
        """Return true or false."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.bad(name, f"must be true or false, and is {_kind(value)}")
        return value

    def number(self, name: str) -> float | None:
        """Return a number."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(name, f"must be a number, and is {_kind(value)}")
        if isinstance(value, int) and abs(value) > _MOST_INTEGER:
            raise self.bad(name, "is a number that is too large")
        return value

    def integer(self, name: str, *, least: int = -_MOST_INTEGER, most: int = _MOST_INTEGER) -> int | None:
        """Return a whole number from *least* to *most*; 3.0 is one."""
        value = self.number(name)
        if value is None:
            return None
        if value != value // 1:
            raise self.bad(name, f"must be a whole number, and is {value:g}")
        if not least <= value <= most:
            bounds = f"{least:,} or more" if most == _MOST_INTEGER else f"from {least:,} to {most:,}"
            raise self.bad(name, f"must be {bounds}, and is {value:g}")
        return int(value)

    def inner(self, name: str) -> "Fields | None":
        """Return the object that a field holds."""
        value = self.values.get(name)
        return None if value is None else as_fields(value, self.where(name))

    def items(self, name: str) -> list[Any] | None:
        """Return a list of anything."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, list):
            raise self.bad(name, f"must be a list, and is {_kind(value)}")
        return value

    def objects(self, name: str) -> Iterator["Fields"]:
        """Yield the objects of a list; none if there is no list."""
        for index, value in enumerate(self.items(name) or ()):
            yield as_fields(value, f"{self.where(name)}[{index}]")

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a string, or the strings of a list, without empty ones."""
        value = self.values.get(name)
        values = [value] if isinstance(value, str) else self.items(name) or []
        for index, item in enumerate(values):
            if not isinstance(item, str):
                raise self.bad(f"{name}[{index}]", f"must be a string, and is {_kind(item)}")
        return tuple(item for item in values if item)


def as_fields(value: object, at: str) -> Fields:
    """Return the object *value* that stands at *at*."""
    if not isinstance(value, dict):
        raise BadRequest(f"{at} must be an object, and is {_kind(value)}", field=at)
    return Fields(value, at)


def _kind(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case None:
            return "null"
    return "an object"
