"""What a conversion makes of each tensor."""

from dataclasses import dataclass

from r1mac.errors import BadRecipe
from r1mac.plan.memory import Quantization
from r1mac.settings import CHOICES

BITS = CHOICES["bits"]
GROUP_SIZES = (32, 64, 128)
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The width of every matrix of a model.

    Attributes:
        name: ``plain`` is one width for all, as ``mlx_lm.convert`` makes it.
        default: width and group size; 16 bits is «only translate».
        dtype: type of what is not quantised, of scales and of biases; None keeps what the source says.
    """

    name: str
    default: Quantization
    dtype: str | None = None

    @property
    def quantizes(self) -> bool:
        """Whether anything is quantised at all."""
        return self.default.bits < 16  # noqa: PLR2004


def plain(*, bits: int, group_size: int = 64, dtype: str | None = None) -> Recipe:
    """Return the recipe of one width for every matrix.

    Raises:
        BadRecipe: MLX has no such width, group size or type.
    """
    if bits not in BITS:
        raise BadRecipe(f"{bits} bits is not a width that r1mac converts to", hint=f"use one of {_listed(BITS)}")
    if group_size not in GROUP_SIZES:
        raise BadRecipe(f"{group_size} is not a group size of MLX", hint=f"use one of {_listed(GROUP_SIZES)}")
    if dtype is not None and dtype not in DTYPES:
        raise BadRecipe(f"{dtype!r} is not a type for weights", hint=f"use one of {_listed(DTYPES)}")
    return Recipe(name="plain", default=Quantization(bits=bits, group_size=group_size), dtype=dtype)


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values))
