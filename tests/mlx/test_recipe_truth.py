"""Recipes carried out: tensors beside ``mlx_lm.convert``'s, sizes beside the plan's, and models that load in both programs."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from r1mac.catalog.arch import parse_arch
from r1mac.convert.pipeline import Target, convert_all
from r1mac.convert.recipe import Override, Recipe, plain
from r1mac.convert.sources import open_source
from r1mac.errors import BadRecipe
from r1mac.formats.folder import read_tensors
from r1mac.plan.compute import Compute
from r1mac.plan.memory import FLOAT_WIDTHS, Quantization
from r1mac.plan.recipe import configured_recipe, recipe_bytes
from tests.checkpoints import CONFIGS, DEEPSEEK_V3, LLAMA, write_checkpoint
from tests.conversions import assert_identical, by_mlx_lm, by_r1mac, engine_logits, json_in, tensors_in

PROMPT = mx.array([[0, 258, 40, 41, 42, 259, 260, 3]])


def override(*tensors: str, width: Quantization, layers: tuple[int, ...] = ()) -> Override:
    """Return an override for the patterns *tensors*."""
    return Override(tensors=tensors, quantization=width, layers=layers)


# Experts narrow, but for one layer's down projections; the rest wide, as for the 671B. Every mode and group size that
# divides these small rows has its place, and something stays at 16 bits.
MIXED_EXPERTS = Recipe(
    name="mixed experts",
    default=Quantization(6),
    overrides=(
        override("model.layers.*.mlp.switch_mlp.down_proj", width=Quantization(4, 32), layers=(2,)),
        override("model.layers.*.mlp.switch_mlp.*", width=Quantization(2, 128)),
        override("*.mlp.shared_experts.*", width=FLOAT_WIDTHS["mxfp8"]),
        override("*.self_attn.q_a_proj", width=FLOAT_WIDTHS["nvfp4"]),
        override("*.self_attn.embed_q", "*.self_attn.unembed_out", width=FLOAT_WIDTHS["mxfp4"]),
        override("lm_head", width=Quantization(16)),
    ),
)
MIXED_DENSE = Recipe(
    name="mixed dense",
    default=Quantization(3),
    overrides=(
        override("*.self_attn.[vk]_proj", width=Quantization(4)),
        override("*.self_attn.o_proj", width=FLOAT_WIDTHS["mxfp4"]),
        override("*.mlp.down_proj", width=Quantization(5, 32), layers=(1,)),
        override("*.mlp.up_proj", width=Quantization(16)),
        override("model.embed_tokens", width=Quantization(6)),
    ),
)
MIXES = {kind: MIXED_EXPERTS if kind == "deepseek_v3" else MIXED_DENSE for kind in CONFIGS}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Return the checkpoint of each architecture, and what its mixed recipe makes of it."""
    folders = {}
    for kind, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(kind)
        source = write_checkpoint(folder / "source", config)
        folders[kind] = source, by_r1mac(source, folder / "ours", MIXES[kind])
    return folders


@pytest.mark.parametrize("width", [5, "mxfp4", "nvfp4", "mxfp8"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_one_width_is_bit_identical_to_mlx_lms(kind: str, width: int | str, tmp_path: Path) -> None:
    """5 bits and the floating-point modes have the bits and the config.json that ``mlx_lm.convert`` writes."""
    source, recipe = write_checkpoint(tmp_path / "source", CONFIGS[kind]), plain(bits=width)

    ours = by_r1mac(source, tmp_path / "ours", recipe)

    theirs = by_mlx_lm(source, tmp_path / "theirs", recipe)
    assert_identical(ours, theirs)
    assert json_in(ours / "config.json") == json_in(theirs / "config.json")


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_mix_is_bit_identical_to_mlx_lms(kind: str, converted: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """Told the same widths through its ``quant_predicate``, ``mlx_lm.convert`` writes the same bits."""
    (source, ours), recipe = converted[kind], MIXES[kind]

    def predicate(path: str, _module: Any) -> bool | dict[str, Any]:
        width = recipe.width_of(path)
        if width.bits == 16:
            return False
        return {"group_size": width.group_size, "bits": width.bits, "mode": width.mode}

    theirs = by_mlx_lm(source, tmp_path / "theirs", recipe, predicate=predicate)

    assert_identical(ours, theirs)
    our_config, their_config = json_in(ours / "config.json"), json_in(theirs / "config.json")
    assert our_config.pop("quantization") == our_config.pop("quantization_config")
    stated = configured_recipe(their_config)
    their_config = {name: value for name, value in their_config.items() if not name.startswith("quantization")}
    assert our_config == their_config
    # They list every matrix, r1mac only those that differ; what wide ones are is told by ``false`` or not at all.
    meant = configured_recipe(json_in(ours / "config.json"))
    for tensor in parse_arch(CONFIGS[kind]).tensors:
        if tensor.role == "matrix" and recipe.width_of(tensor.name).bits < 16:
            assert meant.quantization_for(*tensor[:2]) == stated.quantization_for(*tensor[:2]), tensor.name


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_written_tensors_weigh_what_was_planned(kind: str, converted: dict[str, tuple[Path, Path]]) -> None:
    """The sum of all tensors is what the recipe weighs on paper, to the byte."""
    written = sum(entry.size_bytes for _, entry in read_tensors(converted[kind][1]).values())

    assert written == recipe_bytes(parse_arch(CONFIGS[kind]), MIXES[kind])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_another_type_weighs_what_was_planned(dtype: str, tmp_path: Path) -> None:
    """A recipe's type of its own counts for scales, biases and what is not quantised."""
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3)
    recipe = Recipe(name="mine", default=MIXED_EXPERTS.default, overrides=MIXED_EXPERTS.overrides, dtype=dtype)

    ours = by_r1mac(source, tmp_path / "ours", recipe)

    written = sum(entry.size_bytes for _, entry in read_tensors(ours).values())
    assert written == recipe_bytes(parse_arch(DEEPSEEK_V3), recipe)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_mix_loads_in_mlx_lm_and_gives_the_same_logits(kind: str, converted: dict[str, tuple[Path, Path]]) -> None:
    """mlx-lm loads the folder as it is, every matrix at its width, and answers what r1mac's engine answers."""
    from mlx_lm import load

    folder, recipe = converted[kind][1], MIXES[kind]
    model, _ = load(str(folder))
    modules = dict(model.named_modules())
    for tensor in parse_arch(CONFIGS[kind]).tensors:
        if tensor.role != "matrix":
            continue
        width, module = recipe.quantization_for(tensor.name, tensor.shape), modules[tensor.name.rpartition(".")[0]]
        found = (module.bits, module.group_size, module.mode) if hasattr(module, "bits") else None
        assert found == (width and (width.bits, width.group_size, width.mode)), tensor.name

    model.set_dtype(mx.float32)
    theirs, ours = model(PROMPT), engine_logits(folder, PROMPT, Compute.FLOAT32)

    # The engine has an attention and a router of its own for deepseek_v3: the same to rounding.
    assert np.allclose(np.array(theirs), np.array(ours), atol=1e-4)


@pytest.mark.parametrize("compute", [Compute.FLOAT32, Compute.DEQUANTIZED])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_mix_computes_alike_in_every_type(
    kind: str, compute: Compute, converted: dict[str, tuple[Path, Path]]
) -> None:
    """The engine's own types give the logits of the values that codes and scales stand for, in float32."""
    folder = converted[kind][1]

    found = engine_logits(folder, PROMPT, compute)

    np.testing.assert_allclose(np.array(found), np.array(_dequantized_logits(folder)), atol=2e-4)


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
def test_several_recipes_from_one_read_are_what_each_makes_alone(
    kind: str, converted: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """A mix beside plain widths, made at once: the tensors and config.json of separate conversions."""
    source, mixed = converted[kind]
    recipes = {"mixed": MIXES[kind], "mxfp8": plain(bits="mxfp8"), "3": plain(bits=3), "16": plain(bits=16)}
    for name in recipes:
        (tmp_path / name).mkdir()

    for _ in convert_all(open_source(source), [Target(recipe, tmp_path / name) for name, recipe in recipes.items()]):
        pass

    for name, recipe in recipes.items():
        alone = mixed if name == "mixed" else by_r1mac(source, tmp_path / f"{name}-alone", recipe)
        assert_identical(tmp_path / name, alone)
        assert json_in(tmp_path / name / "config.json") == json_in(alone / "config.json")


def test_a_recipe_that_fits_nothing_writes_nothing(tmp_path: Path) -> None:
    """A slip in a pattern is told before the first byte is written."""
    source = write_checkpoint(tmp_path / "source", LLAMA)
    recipe = Recipe(name="mine", default=Quantization(4), overrides=(override("*.kv_proj", width=Quantization(6)),))

    with pytest.raises(BadRecipe, match="override 1 of the recipe mine"):
        by_r1mac(source, tmp_path / "ours", recipe)
    assert not list((tmp_path / "ours").iterdir())


def _dequantized_logits(folder: Path) -> mx.array:
    """Return the logits of mlx-lm's unquantised model with the values that the folder's codes stand for."""
    from r1mac.engine.config import config_changes
    from r1mac.mlx_lm_api import model_skeleton

    config = json_in(folder / "config.json")
    recipe, tensors, values = configured_recipe(config), tensors_in(folder), []
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and f"{module}.scales" in tensors:
            width = recipe.width_of(module)
            scales, biases = tensors[f"{module}.scales"], tensors.get(f"{module}.biases")
            if biases is not None:
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            tensor = mx.dequantize(  # noqa: PLW2901
                tensor, scales, biases, group_size=width.group_size, bits=width.bits, mode=width.mode
            )
        if kind not in {"scales", "biases"}:
            values.append((name, tensor.astype(mx.float32)))
    plain_config = {name: value for name, value in config.items() if not name.startswith("quantization")}
    model = model_skeleton(plain_config | config_changes(config))
    model.load_weights(values)
    return model(PROMPT)
