"""Recipes: which widths, group sizes and types there are."""

import mlx.core as mx
import pytest

from r1mac.convert.recipe import BITS, DTYPES, GROUP_SIZES, plain
from r1mac.errors import BadRecipe
from r1mac.plan.memory import Quantization
from r1mac.settings import CHOICES


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", [bits for bits in BITS if bits < 16])
def test_every_width_and_group_size_is_one_of_mlx(bits, group_size):
    """MLX quantises to every width and group size that a recipe can ask for."""
    recipe = plain(bits=bits, group_size=group_size)
    codes, scales, _ = mx.quantize(mx.ones((2, 128)), group_size=group_size, bits=bits)

    assert recipe.quantizes
    assert recipe.default == Quantization(bits=bits, group_size=group_size)
    assert codes.shape == (2, 128 * bits // 32)
    assert scales.shape == (2, 128 // group_size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_is_one_of_mlx(dtype):
    """A recipe's types are names of MLX."""
    assert plain(bits=4, dtype=dtype).dtype == dtype
    assert isinstance(getattr(mx, dtype), mx.Dtype)


def test_sixteen_bits_only_translate():
    """A recipe of 16 bits quantises nothing."""
    assert not plain(bits=16).quantizes


def test_what_is_not_said():
    """Unsaid, groups have 64 weights and types stay the source's."""
    recipe = plain(bits=4)

    assert (recipe.name, recipe.default.group_size, recipe.dtype) == ("plain", 64, None)


def test_settings_offer_the_widths_that_recipes_have():
    """What --bits and config.toml may say is what can be converted to."""
    assert CHOICES["bits"] == BITS


@pytest.mark.parametrize("bits", [-4, 0, 1, 5, 7, 12, 32])
def test_an_unknown_width_is_refused(bits):
    """A width that is not offered is named, and the hint lists those that are."""
    with pytest.raises(BadRecipe) as caught:
        plain(bits=bits)

    assert f"{bits} bits" in caught.value.problem
    assert caught.value.hint == "use one of 2, 3, 4, 6, 8, 16"


@pytest.mark.parametrize("group_size", [-64, 0, 1, 16, 48, 256])
def test_an_unknown_group_size_is_refused(group_size):
    """A group size that is not MLX's is named, and the hint lists those that are."""
    with pytest.raises(BadRecipe) as caught:
        plain(bits=4, group_size=group_size)

    assert str(group_size) in caught.value.problem
    assert caught.value.hint == "use one of 32, 64, 128"


@pytest.mark.parametrize("dtype", ["", "bf16", "float64", "int8", "BFLOAT16"])
def test_an_unknown_type_is_refused(dtype):
    """A type that weights cannot have is quoted, and the hint lists those that they can."""
    with pytest.raises(BadRecipe) as caught:
        plain(bits=4, dtype=dtype)

    assert repr(dtype) in caught.value.problem
    assert caught.value.hint == "use one of bfloat16, float16, float32"
