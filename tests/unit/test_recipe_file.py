"""A recipe's TOML file: what it may say, and how a mistake in it is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.convert.recipe_file import load_recipe, parse_recipe
from r1mac.errors import BadRecipe
from r1mac.plan.memory import FLOAT_WIDTHS, Quantization

WHOLE = """\
models = ["671b", "r1-zero-671b"]
nominal_bits = 2
automatic = true
summary = "narrow experts"
dtype = "float16"

[quantize]
bits = 6
group_size = 128

[[quantize.override]]
tensors = "model.layers.*.mlp.switch_mlp.down_proj.weight"
layers = [3, 4]
bits = 3
group_size = 32

[[quantize.override]]
tensors = ["lm_head", "model.embed_tokens"]
mode = "mxfp8"

[[quantize.override]]
tensors = "*.o_proj"
bits = 16
"""


def parsed(text: str):
    """Return the recipe in *text*."""
    return parse_recipe(text, name="mine", where="mine.toml")


def test_every_field_is_read():
    """Names of models become keys, and a group size that an override leaves out is the general one."""
    recipe = parsed(WHOLE)

    assert (recipe.name, recipe.models) == ("mine", ("r1-671b", "r1-zero-671b"))
    assert (recipe.nominal_bits, recipe.automatic) == (2, True)
    assert (recipe.summary, recipe.dtype) == ("narrow experts", "float16")
    assert recipe.default == Quantization(6, 128)
    assert [item.quantization for item in recipe.overrides] == [
        Quantization(3, 32),
        FLOAT_WIDTHS["mxfp8"],
        Quantization(16, 128),
    ]
    assert recipe.overrides[0].applies_to("model.layers.4.mlp.switch_mlp.down_proj")
    assert not recipe.overrides[0].applies_to("model.layers.5.mlp.switch_mlp.down_proj")
    assert recipe.overrides[1].applies_to("lm_head")


def test_the_shortest_recipe():
    """One width is enough, and is what it counts as."""
    recipe = parsed("[quantize]\nbits = 5\n")

    assert (recipe.default, recipe.overrides, recipe.models) == (Quantization(5), (), ())
    assert (recipe.nominal_bits, recipe.automatic) == (5, False)


def test_a_mix_counts_as_no_width_unless_it_says_one():
    """Nobody is told that a mix of 3 and 6 bits has 6."""
    text = '[quantize]\nbits = 6\n[[quantize.override]]\ntensors = "*.mlp.*"\nbits = 3\n'

    assert parsed(text).nominal_bits is None
    assert parsed("nominal_bits = 3\n" + text).nominal_bits == 3


@pytest.mark.parametrize(
    ("line", "instead", "problem", "hint"),
    [
        ("bits = 6", "bits = 7", "mine.toml, [quantize]: 7 bits is not a width", "2, 3, 4, 5, 6, 8, 16"),
        ("bits = 6", "bits = 6.0", "mine.toml, [quantize]: 6.0 bits is not a width", "2, 3, 4, 5, 6, 8, 16"),
        ("bits = 6", "bit = 6", "[quantize] has an unknown field 'bit'", "bits, group_size, mode, override"),
        ("bits = 6\n", "", "[quantize]: bits is missing", "2, 3, 4"),
        ("group_size = 128", "group_size = 48", "[quantize]: 48 is not a group size of MLX", "32, 64, 128"),
        ("bits = 3\n", "bits = 9\n", "mine.toml, line 11: 9 bits", "2, 3, 4, 5, 6, 8, 16"),
        ("bits = 3\n", "bits = true\n", "mine.toml, line 11: True bits", "2, 3, 4, 5, 6, 8, 16"),
        ("layers = [3, 4]", 'layers = "3-4"', "line 11: layers is '3-4'", "layers = [3, 4]"),
        ("layers = [3, 4]", "layers = [-3]", "line 11: layers is [-3]", "layers = [3, 4]"),
        ('mode = "mxfp8"', 'mode = "mxfp6"', "line 17: 'mxfp6' is not a mode of MLX", "affine, mxfp4, nvfp4, mxfp8"),
        ('mode = "mxfp8"', 'mode = "mxfp8"\nbits = 4', "line 17: mxfp8 has bits = 8, not 4", "leave bits out"),
        ('tensors = "*.o_proj"\n', "", "line 21: tensors is None", 'tensors = "*.v_proj"'),
        ('tensors = "*.o_proj"', "tensors = []", "line 21: tensors is []", 'tensors = "*.v_proj"'),
        ('tensors = "*.o_proj"', 'tensor = "*.o_proj"', "line 21 has an unknown field 'tensor'", "tensors"),
        ('"671b", ', '"672b", ', "mine.toml: '672b' is not a model of the catalog", "r1-671b"),
        ('dtype = "float16"', 'dtype = "fp16"', "mine.toml: 'fp16' is not a type for weights", "bfloat16, float16"),
        ("nominal_bits = 2", "nominal_bits = 1", "mine.toml: nominal_bits is 1", "2, 3, 4, 5, 6, 8, 16"),
        ("nominal_bits = 2\n", "", "an automatic recipe has models and nominal_bits", "leave out automatic"),
        ("automatic = true", 'automatic = "yes"', "automatic is 'yes'", "true or false"),
        ("summary = ", "summery = ", "mine.toml has an unknown field 'summery'", "summary"),
        ('summary = "narrow experts"', "summary = 3", "summary is 3, not text", "quotes"),
        ("[quantize]\nbits = 6\ngroup_size = 128\n", "quantize = 4\n", "mine.toml", ""),
        ("bits = 6", "bits = ", "mine.toml is not valid TOML: Invalid value (at line 8", "correct that line"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place_and_what_is_known(line, instead, problem, hint):
    """File, line or field, what it says, and in the hint what it may say."""
    assert line in WHOLE
    with pytest.raises(BadRecipe) as caught:
        parsed(WHOLE.replace(line, instead, 1))

    assert problem in caught.value.problem
    assert hint in caught.value.hint
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("text", ["", "quantize = 4", "quantize = []", "quantize = {bits = 4, override = {}}",
                                  "[quantize]\nbits = 4\noverride = [3]"])  # fmt: skip
def test_a_file_without_widths_is_refused(text):
    """What has no [quantize], or something else in its place, is no recipe."""
    with pytest.raises(BadRecipe, match=r"mine\.toml"):
        parsed(text)


@given(st.text(max_size=80))
def test_no_text_makes_it_stumble(text):
    """Any text is a recipe or is refused in words."""
    problem = "mine.toml is fine"
    try:
        parsed(f"[quantize]\nbits = 4\n{text}")
    except BadRecipe as error:
        problem = error.problem

    assert problem.startswith("mine.toml")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """A file that is not there, and one that is not text."""
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")

    for name in ("absent.toml", "binary.toml"):
        with pytest.raises(BadRecipe, match=name):
            load_recipe(tmp_path / name)
