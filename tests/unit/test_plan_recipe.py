"""Recipes on paper: which matrix gets which width, and what the result weighs and reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.catalog.arch import parse_arch
from r1mac.catalog.models import all_models, find
from r1mac.convert.recipe import plain, shipped_recipes
from r1mac.plan.memory import FLOAT_WIDTHS, Quantization, tensor_bytes, weight_bytes
from r1mac.plan.recipe import (
    Override,
    Recipe,
    config_entry,
    configured_recipe,
    read_bytes_per_token,
    recipe_bytes,
)
from tests.checkpoints import CONFIGS
from tests.goldens import assert_golden

FOUR, SIX, WIDE = Quantization(4), Quantization(6), Quantization(16)
R1 = find("671b").arch


def recipe_of(*overrides: Override, default: Quantization = SIX, **fields) -> Recipe:
    """Return a recipe of the default width and *overrides*."""
    return Recipe(name="mine", default=default, overrides=overrides, **fields)


def override(*tensors: str, bits: int = 4, layers: tuple[int, ...] = ()) -> Override:
    """Return an override to *bits*."""
    return Override(tensors=tensors, quantization=Quantization(bits), layers=layers)


def test_the_first_override_decides():
    """Of two that apply, the one that stands first."""
    recipe = recipe_of(override("*.down_proj", bits=8), override("*.mlp.*", bits=2))

    assert recipe.width_of("model.layers.7.mlp.down_proj").bits == 8
    assert recipe.width_of("model.layers.7.mlp.up_proj").bits == 2
    assert recipe.width_of("model.layers.7.self_attn.o_proj").bits == 6


@pytest.mark.parametrize(
    ("pattern", "path", "applies"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "model.lm_head", False),
        ("*.v_proj", "model.layers.0.self_attn.v_proj", True),
        ("*.v_proj", "model.layers.0.self_attn.kv_a_proj", False),
        ("model.layers.?.mlp.*", "model.layers.9.mlp.up_proj", True),
        ("model.layers.?.mlp.*", "model.layers.10.mlp.up_proj", False),
        ("model.layers.[34].*", "model.layers.4.mlp.up_proj", True),
        ("*.Q_PROJ", "model.layers.0.self_attn.q_proj", False),
        ("*", "model.embed_tokens", True),
    ],
)
def test_patterns_match_whole_paths(pattern, path, applies):
    """A pattern is for the whole path, case counts, and a star goes over dots."""
    assert override(pattern).applies_to(path) == applies


def test_layers_narrow_an_override():
    """An override with layers is for those only, and for nothing outside of layers."""
    narrow = override("*", layers=(3, 14))

    assert [index for index in range(20) if narrow.applies_to(f"model.layers.{index}.mlp.down_proj")] == [3, 14]
    assert not narrow.applies_to("lm_head")


@pytest.mark.parametrize(
    ("width", "columns", "quantized"),
    [(FOUR, 128, True), (FOUR, 96, False), (Quantization(4, 32), 96, True), (WIDE, 128, False),
     (FLOAT_WIDTHS["nvfp4"], 48, True), (FLOAT_WIDTHS["mxfp4"], 48, False)],
)  # fmt: skip
def test_a_matrix_stays_wide_where_it_has_to(width, columns, quantized):
    """At 16 bits, and where the group size does not divide the rows, there is no quantisation."""
    found = recipe_of(default=width).quantization_for("model.layers.0.mlp.up_proj.weight", (8, columns))

    assert found == (width if quantized else None)


@pytest.mark.parametrize("mode", FLOAT_WIDTHS)
@pytest.mark.parametrize("shape", [(64, 128), (5, 192), (3, 7, 64)], ids=str)
def test_bytes_in_the_floating_point_modes_are_those_that_mlx_makes(shape, mode):
    """A scale of 8 bits a group and no bias: the formula gives the arrays that ``mx.quantize`` returns."""
    import mlx.core as mx

    width = FLOAT_WIDTHS[mode]
    values = mx.zeros(shape, dtype=mx.bfloat16)
    parts = mx.quantize(values, group_size=width.group_size, bits=width.bits, mode=mode)

    assert len(parts) == 2
    assert tensor_bytes(shape, width) == sum(part.nbytes for part in parts)
    assert width.bits_per_weight == 8 * tensor_bytes(shape, width) / values.size


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8, 16])
@pytest.mark.parametrize("name", ["671b", "70b", "1.5b", "demo"])
def test_one_width_for_all_weighs_what_a_plain_conversion_does(name, bits):
    """A plain recipe and an override that says the same for everything weigh the same."""
    arch = find(name).arch
    everywhere = recipe_of(override("*", bits=bits), default=Quantization(16))

    assert (
        recipe_bytes(arch, plain(bits=bits)) == weight_bytes(arch, Quantization(bits)) == recipe_bytes(arch, everywhere)
    )


@given(
    kind=st.sampled_from(sorted(CONFIGS)),
    widths=st.lists(st.sampled_from([2, 3, 4, 6, 8, 16]), min_size=3, max_size=3),
    more=st.sampled_from([8, 16]),
)
def test_wider_overrides_never_weigh_less(kind, widths, more):
    """Widening one group of matrices never shrinks the model, nor what a token reads of it."""
    arch = parse_arch(CONFIGS[kind])
    attention, mlp, default = widths
    sizes = []
    for width in (attention, max(attention, more)):
        overrides = (override("*.self_attn.*", bits=width), override("*.mlp.*", bits=mlp))
        recipe = recipe_of(*overrides, default=Quantization(default))
        sizes.append((recipe_bytes(arch, recipe), read_bytes_per_token(arch, recipe)))

    (narrow, narrow_read), (wide, wide_read) = sizes
    assert narrow <= wide
    assert narrow_read <= wide_read
    assert narrow_read <= narrow


def test_what_a_token_of_the_671b_reads():
    """Of 256 experts it reads 8, of the embedding a row: 19.5 GB of the 218 GB where the rest has 6 bits, by hand."""
    recipe = recipe_of(override("model.layers.*.mlp.switch_mlp.*", bits=2))
    # 20,434,649,088 weights of experts at 2.5 bits; 11.413 G of attention, 2.554 G of shared experts, 1.189 G of dense
    # layers and 0.927 G of the head at 6.5; routers (106.4 M) at 16.
    experts = 20_434_649_088 * 2.5 / 8
    rest = (61 * (187_105_280 - 1536 - 512) + 58 * 44_040_192 + 3 * 3 * 7168 * 18432 + 129_280 * 7168) * 6.5 / 8
    routers = 58 * 256 * 7168 * 2

    read = read_bytes_per_token(R1, recipe)

    assert read == pytest.approx(experts + rest + routers, rel=1e-3)


def test_the_type_of_scales_counts():
    """In float32, scales, biases and what is not quantised take twice as much; codes do not."""
    arch = parse_arch(CONFIGS["llama"])
    usual, wide = (recipe_bytes(arch, recipe_of(default=FOUR, dtype=dtype)) for dtype in (None, "float32"))
    matrices = sum(tensor.size for tensor in arch.tensors if tensor.role == "matrix")

    assert wide - usual == usual - matrices // 2


def test_config_json_says_a_mix_and_is_read_back():
    """What config.json says of a mixed model gives every matrix its width again."""
    widths = {"a": SIX, "b": FOUR, "c": None, "d": FLOAT_WIDTHS["mxfp4"]}
    recipe = recipe_of(override("b"), override("c", bits=16), Override(tensors=("d",), quantization=widths["d"]))

    entry = config_entry(recipe, widths)
    read = configured_recipe({"quantization": entry})

    assert entry == {
        "group_size": 64,
        "bits": 6,
        "mode": "affine",
        "b": {"group_size": 64, "bits": 4, "mode": "affine"},
        "c": False,
        "d": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    }
    assert {path: read.quantization_for(path, (1, 64)) for path in widths} == widths


def test_config_json_of_a_plain_recipe_has_no_entries():
    """One width for all is said once, and 16 bits not at all."""
    assert config_entry(plain(bits=4), {"a": FOUR, "b": None}) == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert config_entry(plain(bits=16), {"a": None}) is None


def test_config_json_without_a_general_width_is_read_as_unknown():
    """A quantisation that is not understood is no recipe, instead of a wrong size."""
    assert configured_recipe({}) is None
    assert configured_recipe({"quantization": {"bits": "four", "group_size": 64}}) is None
    assert configured_recipe({"quantization": {"bits": 4, "group_size": 64, "a": {"bits": 4}}}) is None


def test_every_shipped_recipe_weighs_what_a_person_read():
    """Bytes, bits a weight and bytes read for a token of each recipe that ships, for each of its models."""
    lines = [
        f"{recipe.name:<20} {model.key:<20} {recipe_bytes(model.arch, recipe):>15,} bytes  "
        f"{8 * recipe_bytes(model.arch, recipe) / model.arch.parameter_count:.3f} bits/weight  "
        f"{round(read_bytes_per_token(model.arch, recipe)):>14,} bytes read/token"
        for recipe in shipped_recipes()
        for model in all_models()
        if model.key in recipe.models
    ]

    assert_golden("recipes.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("name", "gigabytes", "read_gigabytes"),
    [
        ("r1-671b-2bit-small", 197.8, 18.90),
        ("r1-671b-2bit", 218.3, 19.54),
        ("r1-671b-3bit", 300.0, 22.10),
        ("r1-671b-3bit-dq3", 308.4, 22.36),
        ("r1-671b-4bit", 381.7, 24.65),
    ],
)
def test_the_671b_weighs_what_was_reckoned_elsewhere(name, gigabytes, read_gigabytes):
    """Sizes and bytes read are those of an independent sum, but for the routers.

    That one took the routers' 106,430,464 weights for quantised at 6 bits: 126,386,176 bytes more are stored and
    read. It also counted no float32 correction biases (59,392 bytes).
    """
    recipe = next(recipe for recipe in shipped_recipes() if recipe.name == name)
    routers_bytes = 58 * 256 * 7168 * (16 - 6.5) / 8

    assert (recipe_bytes(R1, recipe) - routers_bytes) / 1e9 == pytest.approx(gigabytes, abs=0.06)
    assert (read_bytes_per_token(R1, recipe) - routers_bytes) / 1e9 == pytest.approx(read_gigabytes, abs=0.006)


@pytest.mark.parametrize(
    ("name", "mxfp4", "five", "mxfp8"),
    [("1.5b", 0.94, 1.22, None), ("8b", 4.35, 5.63, None), ("32b", 17.41, 22.53, None), ("70b", 37.48, 48.51, None),
     ("671b", 356.64, 461.47, 692.1)],
)  # fmt: skip
def test_sizes_in_other_widths_are_those_of_mlx_lms_modules(name, mxfp4, five, mxfp8):
    """5 bits and the floating-point modes weigh what mlx-lm's own quantised modules were found to weigh, in GB."""
    arch = find(name).arch

    for width, gigabytes, error in (("mxfp4", mxfp4, 0.006), (5, five, 0.006), ("mxfp8", mxfp8, 0.05)):
        if gigabytes is not None:
            assert recipe_bytes(arch, plain(bits=width)) / 1e9 == pytest.approx(gigabytes, abs=error)
    assert recipe_bytes(arch, plain(bits="nvfp4")) == recipe_bytes(arch, plain(bits=4))
