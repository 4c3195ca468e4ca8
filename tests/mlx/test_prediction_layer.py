"""DeepSeek's layer behind the last one (MTP): converted into files of its own, and no part of the model."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from r1mac.catalog.arch import parse_arch, prediction_tensors
from r1mac.catalog.models import find
from r1mac.convert.card import write_card
from r1mac.convert.layout import layout_on_paper
from r1mac.convert.pipeline import StepDone, convert
from r1mac.convert.recipe import Override, Recipe, plain
from r1mac.convert.sources import open_source
from r1mac.errors import BadCheckpoint
from r1mac.formats.folder import read_tensors, weight_files
from r1mac.formats.safetensors import read_header
from r1mac.plan.compute import Compute
from r1mac.plan.memory import Quantization
from r1mac.plan.recipe import recipe_bytes
from tests.checkpoints import DEEPSEEK_V3, hub_weights, write_checkpoint
from tests.conversions import assert_identical, by_r1mac, engine_logits, json_in

LAST = DEEPSEEK_V3["num_hidden_layers"]
PREFIX = f"model.layers.{LAST}."
HIDDEN = DEEPSEEK_V3["hidden_size"]
# Narrow experts, as for the 671B; the layer's own projection gets the general width.
RECIPE = Recipe(
    name="mine",
    default=Quantization(6),
    overrides=(Override(tensors=("*.switch_mlp.*",), quantization=Quantization(2)),),
)


def prediction_weights() -> dict[str, mx.array]:
    """Return the layer's weights under the Hub's names, embedding and head among them as in the published files."""
    more = hub_weights({**DEEPSEEK_V3, "num_hidden_layers": LAST + 1}, seed=7)
    weights = {name: values for name, values in more.items() if name.startswith(PREFIX)}
    weights[PREFIX + "eh_proj.weight"] = (mx.random.normal((HIDDEN, 2 * HIDDEN)) * 0.1).astype(mx.bfloat16)
    for name in ("enorm", "hnorm", "shared_head.norm"):
        weights[f"{PREFIX}{name}.weight"] = mx.random.normal((HIDDEN,)).astype(mx.bfloat16)
    weights[PREFIX + "embed_tokens.weight"] = more["model.embed_tokens.weight"]
    weights[PREFIX + "shared_head.head.weight"] = more["lm_head.weight"]
    return weights


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint with the layer."""
    weights = hub_weights(DEEPSEEK_V3) | prediction_weights()
    return write_checkpoint(tmp_path_factory.mktemp("with") / "source", DEEPSEEK_V3, weights=weights)


@pytest.fixture(scope="module")
def ours(source: Path) -> Path:
    """Return what r1mac makes of it."""
    return by_r1mac(source, source.parent / "ours", RECIPE)


def test_the_layer_is_quantised_by_the_recipe_like_any_other(ours: Path) -> None:
    """Its tensors have MLX's names and the widths of the recipe; every value is that of quantising by hand."""
    found, weights = mx.load(str(ours / "mtp.safetensors")), prediction_weights()
    experts = [
        weights[f"{PREFIX}mlp.experts.{index}.down_proj.weight"] for index in range(DEEPSEEK_V3["n_routed_experts"])
    ]
    kv_b = weights[PREFIX + "self_attn.kv_b_proj.weight"].reshape(DEEPSEEK_V3["num_attention_heads"], -1, 128)

    _assert_quantized(found, "eh_proj", weights[PREFIX + "eh_proj.weight"], bits=6)
    _assert_quantized(found, "mlp.switch_mlp.down_proj", mx.stack(experts), bits=2)
    _assert_quantized(found, "self_attn.embed_q", kv_b[:, :64].swapaxes(1, 2), bits=6)
    for name in ("enorm", "hnorm", "shared_head.norm", "input_layernorm"):
        assert mx.array_equal(found[f"{PREFIX}{name}.weight"], weights[f"{PREFIX}{name}.weight"]), name
    assert found[PREFIX + "mlp.gate.e_score_correction_bias"].dtype == mx.float32
    # Embedding and head are the model's own.
    assert not [name for name in found if "embed_tokens" in name or "shared_head.head" in name]
    assert all(name.startswith(PREFIX) for name in found)


def test_the_layer_weighs_what_is_said_before(ours: Path) -> None:
    """On paper, from config.json alone, model and layer have the bytes that are written."""
    layout = layout_on_paper(parse_arch({**DEEPSEEK_V3, "num_nextn_predict_layers": 1}), RECIPE)

    written = sum(entry.size_bytes for entry in read_header(ours / "mtp.safetensors").values())
    assert layout.prediction_bytes == written
    assert layout.output_bytes == written + recipe_bytes(parse_arch(DEEPSEEK_V3), RECIPE)


def test_the_layer_of_the_671b() -> None:
    """It has the 11.6 billion parameters that its makers' notes say, and at 4 bits weighs 6.5 GB."""
    tensors = prediction_tensors(find("671b").arch, 61)

    assert sum(tensor.size for tensor in tensors) == 11_610_068_224
    assert layout_on_paper(find("671b").arch, plain(bits=4)).prediction_bytes / 1e9 == pytest.approx(6.53, abs=0.01)


def test_the_model_is_the_one_without_it(ours: Path, tmp_path: Path) -> None:
    """Weight files, index, size and parameters are those of the same checkpoint without the layer."""
    bare = by_r1mac(write_checkpoint(tmp_path / "source", DEEPSEEK_V3), tmp_path / "bare", RECIPE)

    assert_identical(ours, bare)
    assert json_in(ours / "model.safetensors.index.json") == json_in(bare / "model.safetensors.index.json")
    assert sum(entry.size_bytes for _, entry in read_tensors(ours).values()) == recipe_bytes(
        parse_arch(DEEPSEEK_V3), RECIPE
    )
    assert not (bare / "mtp.safetensors").exists()


def test_both_programs_load_the_model_and_leave_the_layer(ours: Path) -> None:
    """mlx-lm and r1mac's engine take the folder as it is, and give the same logits."""
    from mlx_lm import load

    prompt = mx.array([[0, 258, 40, 41, 42]])
    model, _ = load(str(ours))
    model.set_dtype(mx.float32)

    found = engine_logits(ours, prompt, Compute.FLOAT32)

    # The engine has an attention and a router of its own: the same to rounding.
    assert np.allclose(np.array(found), np.array(model(prompt)), atol=1e-4)
    assert [path.name for path in weight_files(ours)] == ["model.safetensors"]


def test_the_layer_is_cut_into_files_of_its_own(source: Path, tmp_path: Path) -> None:
    """Where one is too small, its files are numbered by themselves."""
    for _ in convert(open_source(source), plain(bits=16), tmp_path, max_shard_bytes=400_000):
        pass

    files = sorted(tmp_path.glob("*.safetensors"))
    mtp = [path for path in files if path.name.startswith("mtp-")]
    assert len(mtp) > 1
    assert mtp[-1].name == f"mtp-{len(mtp):05}-of-{len(mtp):05}.safetensors"
    assert set(files) - set(mtp) == set(weight_files(tmp_path))
    names = [name for path in mtp for name in mx.load(str(path))]
    assert len(set(names)) == len(names) == len(_mlx_names())


@pytest.mark.parametrize("is_indexed", [True, False])
def test_a_converted_model_keeps_the_layer_when_it_is_converted_again(
    ours: Path, is_indexed: bool, tmp_path: Path
) -> None:
    """Written out at 16 bits and quantised once more, model and layer are those of the first conversion."""
    folder = Path(shutil.copytree(ours, tmp_path / "ours"))
    if not is_indexed:
        (folder / "model.safetensors.index.json").unlink()

    wide = by_r1mac(folder, tmp_path / "wide", plain(bits=16))
    again = by_r1mac(folder, tmp_path / "again", plain(bits=2))

    for stem in ("model", "mtp"):
        first, values, narrow = (mx.load(str(path / f"{stem}.safetensors")) for path in (folder, wide, again))
        for name, written in values.items():
            module = name.removesuffix(".weight")
            if f"{module}.scales" not in first:
                assert mx.array_equal(written, first[name]), name
                continue
            bits = 2 if "switch_mlp" in name else 6
            meant = mx.dequantize(first[name], first[f"{module}.scales"], first[f"{module}.biases"], 64, bits)
            assert mx.array_equal(written, meant), name
            assert mx.array_equal(narrow[name], mx.quantize(meant, 64, 2)[0]), name


def test_the_layer_can_be_left_out(source: Path, tmp_path: Path) -> None:
    """Then the result is the model alone, its card says so, and one that was begun with it is begun anew."""
    with_it, without = tmp_path / "with", tmp_path / "without"
    for folder in (with_it, without):
        folder.mkdir()
    begun = convert(open_source(source), RECIPE, with_it, max_shard_bytes=400_000)
    for event in begun:
        if isinstance(event, StepDone):
            begun.close()
    first, *_ = convert(open_source(source, prediction=False), RECIPE, with_it, max_shard_bytes=400_000)
    for _ in convert(open_source(source, prediction=False), RECIPE, without):
        pass
    write_card(without, title="mine", repo=None, revision=None, source_card=None)

    assert "prediction layer" in first.reasons[0]
    assert not list(without.glob("mtp*"))
    assert_identical(without, by_r1mac(source, tmp_path / "both", RECIPE))
    assert "| not converted | the prediction layer (MTP) |" in (without / "README.md").read_text()


@pytest.mark.parametrize(
    "name", ["enorm.weight", "mlp.experts.3.up_proj.weight", "self_attn.kv_b_proj.weight", "shared_head.norm.weight"]
)
def test_a_layer_that_is_not_whole_is_refused(name: str, tmp_path: Path) -> None:
    """A part of it that is missing is named, instead of a file that cannot be used later."""
    weights = hub_weights(DEEPSEEK_V3) | prediction_weights()
    del weights[PREFIX + name]
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3, weights=weights)

    with pytest.raises(BadCheckpoint) as caught:
        by_r1mac(source, tmp_path / "ours", RECIPE)

    assert PREFIX + name in caught.value.problem
    assert "--no-mtp" in str(caught.value.hint)


def _mlx_names() -> list[str]:
    return [tensor.name for tensor in prediction_tensors(parse_arch(DEEPSEEK_V3), LAST)]


def _assert_quantized(found: Mapping[str, Any], module: str, values: mx.array, *, bits: int) -> None:
    expected = mx.quantize(mx.contiguous(values), group_size=64, bits=bits)
    for kind, part in zip(("weight", "scales", "biases"), expected, strict=True):
        assert mx.array_equal(found[f"{PREFIX}{module}.{kind}"], part), (module, kind)
