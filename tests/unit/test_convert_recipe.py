"""Recipes: which widths, group sizes and types there are, which ship, and what --bits means."""

import mlx.core as mx
import pytest

from r1mac.catalog.arch import parse_arch
from r1mac.catalog.models import all_models, find
from r1mac.convert.recipe import (
    BITS,
    DTYPES,
    GROUP_SIZES,
    Override,
    Recipe,
    automatic_recipe,
    check_recipe,
    find_recipe,
    plain,
    recipe_for,
    shipped_recipes,
)
from r1mac.errors import BadRecipe
from r1mac.plan.memory import FLOAT_WIDTHS, Quantization
from r1mac.settings import CHOICES
from tests.checkpoints import CONFIGS

SHIPPED = {recipe.name: recipe for recipe in shipped_recipes()}


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
    assert set(CHOICES["bits"]) <= set(BITS)


@pytest.mark.parametrize("mode", FLOAT_WIDTHS)
def test_a_floating_point_mode_is_a_width_of_its_own(mode):
    """Its name stands for bits and group size, both MLX's."""
    width = plain(bits=mode).default
    codes, scales = mx.quantize(mx.ones((2, 128)), mode=mode)

    assert (width.mode, codes.shape, scales.shape) == (mode, (2, 4 * width.bits), (2, 128 // width.group_size))


def test_a_floating_point_mode_has_no_other_group_size():
    """A group size that contradicts the mode is refused instead of ignored."""
    with pytest.raises(BadRecipe, match="mxfp4 has group_size = 32, not 64"):
        plain(bits="mxfp4", group_size=64)


@pytest.mark.parametrize("text", ["four", "", "4.5", "mxfp5"])
def test_a_width_that_is_no_number_is_refused(text):
    """What is neither a number nor a mode is quoted, and the hint lists both."""
    with pytest.raises(BadRecipe) as caught:
        plain(bits=text)

    assert repr(text) in caught.value.problem
    assert caught.value.hint == "use one of 2, 3, 4, 5, 6, 8, 16, mxfp4, nvfp4, mxfp8"


@pytest.mark.parametrize("bits", [-4, 0, 1, 7, 12, 32])
def test_an_unknown_width_is_refused(bits):
    """A width that is not offered is named, and the hint lists those that are."""
    with pytest.raises(BadRecipe) as caught:
        plain(bits=bits)

    assert f"{bits} bits" in caught.value.problem
    assert caught.value.hint == "use one of 2, 3, 4, 5, 6, 8, 16"


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


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_for_models_that_exist(name):
    """It says what it does, is for members of the family, and every override of it is for some matrix of each."""
    recipe = SHIPPED[name]

    assert recipe.summary
    assert recipe.models
    for key in recipe.models:
        check_recipe(recipe, find(key).arch)


def test_a_width_means_one_recipe():
    """No two automatic recipes of one width are for the same model."""
    meant = [(key, recipe.nominal_bits) for recipe in SHIPPED.values() if recipe.automatic for key in recipe.models]

    assert len(set(meant)) == len(meant)


def test_every_member_of_the_family_has_recipes():
    """Every member of the family is in a recipe that ships."""
    covered = {key for recipe in SHIPPED.values() for key in recipe.models}

    assert covered == {model.key for model in all_models() if model.is_member}


@pytest.mark.parametrize(
    ("name", "bits", "meant"),
    [
        ("671b", 2, "r1-671b-2bit"),
        ("r1-jan", 3, "r1-671b-3bit"),
        ("zero", 4, "r1-671b-4bit"),
        ("v3.1", 2, "r1-671b-2bit"),
        ("8b", 3, "r1-distill-3bit"),
        ("70b", 3, "r1-distill-3bit"),
        ("70b", 4, "plain"),
        ("671b", 8, "plain"),
        ("demo", 3, "plain"),
    ],
)
def test_what_bits_means_for_a_model(name, bits, meant):
    """A model's own recipe of that width where there is one, else one width for all."""
    assert recipe_for(find(name).key, bits).name == meant


def test_what_bits_means_for_weights_that_the_catalog_does_not_know():
    """One width for all, in the group size that was asked for."""
    recipe = recipe_for(None, 2, group_size=32)

    assert (recipe.name, recipe.default) == ("plain", Quantization(2, 32))
    assert automatic_recipe("r1-671b", 5) is None


def test_a_name_is_a_shipped_recipe_and_a_path_a_file(tmp_path, monkeypatch):
    """A copy that somebody edits is never taken for the original, though it has the same name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1-671b-2bit.toml").write_text("[quantize]\nbits = 5\n", encoding="utf-8")

    assert find_recipe("r1-671b-2bit") == SHIPPED["r1-671b-2bit"]
    assert find_recipe("r1-671b-2bit.toml").default == Quantization(5)
    assert find_recipe("./r1-671b-2bit.toml").nominal_bits == 5


def test_an_unknown_recipe_is_refused_with_those_that_there_are():
    """A slip of the name shows the names."""
    with pytest.raises(BadRecipe, match="no recipe 'r1-671b-2bits'") as caught:
        find_recipe("r1-671b-2bits")

    assert "r1-671b-2bit, r1-671b-2bit-small" in caught.value.hint


def test_a_recipe_for_other_layers_is_refused():
    """A recipe for the 671B is not for a llama, and the hint tells how to take it over."""
    with pytest.raises(BadRecipe, match=r"is for r1-671b.* other layers") as caught:
        check_recipe(SHIPPED["r1-671b-2bit"], find("70b").arch)

    assert "--recipe FILE" in caught.value.hint


def test_a_finetune_with_another_vocabulary_takes_the_recipe():
    """More tokens and a longer context change no layer."""
    config = {**CONFIGS["llama"], "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672}
    config |= {"num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128_300, "head_dim": 128}

    check_recipe(SHIPPED["r1-distill-3bit"], parse_arch({**config, "max_position_embeddings": 1_000_000}))


def test_an_override_for_nothing_is_refused():
    """A slip in a pattern, or one that stands behind a wider one, is named instead of ignored."""
    arch = parse_arch(CONFIGS["llama"])

    def refused(*patterns: str) -> str:
        overrides = tuple(Override(tensors=(pattern,), quantization=Quantization(4)) for pattern in patterns)
        with pytest.raises(BadRecipe) as caught:
            check_recipe(Recipe(name="mine", default=Quantization(6), overrides=overrides), arch)
        return caught.value.problem

    assert "override 1 of the recipe mine (*.v_porj)" in refused("*.v_porj")
    assert "override 2 of the recipe mine (*.v_proj)" in refused("*.self_attn.*", "*.v_proj")
