"""The widths, group sizes and types that MLX has, checked as a person or a file says them."""

from collections.abc import Mapping
from typing import Any

from r1mac.errors import BadRecipe
from r1mac.plan.memory import FLOAT_WIDTHS, Quantization
from r1mac.plan.recipe import WIDE_BITS

BITS = (2, 3, 4, 5, 6, 8, WIDE_BITS)
GROUP_SIZES = (32, 64, 128)
MODES = ("affine", *FLOAT_WIDTHS)
DTYPES = ("bfloat16", "float16", "float32")


def checked_width(fields: Mapping[str, Any], *, where: str = "") -> Quantization:
    """Return the width that *fields* (bits, group_size, mode) state; *where* begins the error's text.

    Raises:
        BadRecipe: MLX has none like it.
    """
    mode = fields.get("mode", "affine")
    if mode not in MODES:
        raise BadRecipe(f"{where}{mode!r} is not a mode of MLX", hint=f"use one of {listed(MODES)}")
    if mode in FLOAT_WIDTHS:
        width = FLOAT_WIDTHS[mode]
        for name, own in (("bits", width.bits), ("group_size", width.group_size)):
            if fields.get(name, own) != own:
                raise BadRecipe(
                    f"{where}{mode} has {name} = {own}, not {fields[name]!r}", hint=f"leave {name} out for {mode}"
                )
        return width
    bits, group_size = fields.get("bits"), fields.get("group_size", 64)
    if bits is None:
        raise BadRecipe(f"{where}bits is missing", hint=f"use one of {listed(BITS)}")
    if type(bits) is not int or bits not in BITS:
        raise BadRecipe(f"{where}{bits} bits is not a width that r1mac converts to", hint=f"use one of {listed(BITS)}")
    if type(group_size) is not int or group_size not in GROUP_SIZES:
        raise BadRecipe(f"{where}{group_size} is not a group size of MLX", hint=f"use one of {listed(GROUP_SIZES)}")
    return Quantization(bits=bits, group_size=group_size)


def parsed_bits(bits: int | str) -> int:
    """Return a width that was typed as a number.

    Raises:
        BadRecipe: it is none.
    """
    try:
        return int(bits)
    except ValueError as error:
        known = (*BITS, *FLOAT_WIDTHS)
        raise BadRecipe(f"{bits!r} is not a width of MLX", hint=f"use one of {listed(known)}") from error


def checked_dtype(dtype: Any, *, where: str = "") -> str | None:
    """Return the type for what is not quantised, if one is said.

    Raises:
        BadRecipe: weights cannot have it.
    """
    if dtype is not None and dtype not in DTYPES:
        raise BadRecipe(f"{where}{dtype!r} is not a type for weights", hint=f"use one of {listed(DTYPES)}")
    return None if dtype is None else str(dtype)


def listed(values: tuple[object, ...]) -> str:
    """Return *values* as text, one after another."""
    return ", ".join(map(str, values))
