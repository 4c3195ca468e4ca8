"""A number of bytes on the command line."""

import re

import click

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kmg]i?b)", re.IGNORECASE)


class Size(click.ParamType[int]):
    """A number of bytes with its unit, such as ``4gb``."""

    name = "SIZE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size such as 500mb or 4gb", param, ctx)
        return round(float(match["number"]) * _UNITS[match["unit"].lower()])
