"""Adapters merged on the way: the formula, mlx-lm's own fusing, and how much survives quantisation."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from r1mac.convert.adapter import AdaptedSource
from r1mac.convert.adapter_effect import measure_effect
from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from r1mac.errors import BadRecipe
from tests.adapters import assert_rounded, lora_pair, merged_rows, write_mlx_adapter, write_peft_adapter
from tests.checkpoints import DEEPSEEK_V3, LLAMA, QWEN2, hub_weights, write_checkpoint, write_fp8_checkpoint
from tests.ggufs import GGUF_LLAMA, write_gguf

QUERY = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"


def _float32(values: mx.array) -> np.ndarray:
    return np.array(values.astype(mx.float32))


def _product(pair: dict[str, mx.array], module: str) -> np.ndarray:
    return _float32(pair[f"{module}.lora_B.weight"]) @ _float32(pair[f"{module}.lora_A.weight"])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a llama checkpoint in bfloat16."""
    return write_checkpoint(tmp_path / "base", LLAMA)


def _convert(source: AdaptedSource, folder: Path, *, bits: int) -> Path:
    folder.mkdir()
    for _ in convert(source, plain(bits=bits), folder):
        pass
    return folder


@pytest.mark.parametrize(("settings", "scale"), [({}, 8 / 4), ({"use_rslora": True}, 8 / 2), ({"lora_alpha": 1}, 0.25)])
def test_a_low_rank_change_is_added_in_float32(settings: dict, scale: float, base: Path, tmp_path: Path) -> None:
    """The merged matrix is W + scale B A, rounded once; matrices without a change keep their bits."""
    pair = lora_pair(QUERY, (128, 128)) | lora_pair(DOWN, (128, 256), seed=2)
    adapter = write_peft_adapter(tmp_path / "adapter", pair, **settings)

    source = open_source(base, [adapter])

    weights = hub_weights(LLAMA)
    for module in (QUERY, DOWN):
        exact = _float32(weights[f"{module}.weight"]) + scale * _product(pair, module)
        assert_rounded(merged_rows(source, f"{module}.weight"), exact)
    assert np.array_equal(merged_rows(source, "lm_head.weight"), _float32(weights["lm_head.weight"]))


def test_unsloths_names_with_the_adapters_own_name(base: Path, tmp_path: Path) -> None:
    """Names with «.default» in them, as some trainers save them, are the same adapter."""
    pair = lora_pair(QUERY, (128, 128))
    renamed = {name.replace(".weight", ".default.weight"): array for name, array in pair.items()}
    plain_one = open_source(base, [write_peft_adapter(tmp_path / "plain", pair)])

    source = open_source(base, [write_peft_adapter(tmp_path / "renamed", renamed)])

    name = f"{QUERY}.weight"
    assert np.array_equal(merged_rows(source, name), merged_rows(plain_one, name))


def test_dora_stretches_each_row_to_its_length(base: Path, tmp_path: Path) -> None:
    """DoRA's merged rows have the learned lengths, whatever blocks they were read in."""
    pair, lengths = lora_pair(QUERY, (128, 128)), mx.random.uniform(0.5, 2.0, (128,))
    tensors = pair | {f"{QUERY}.lora_magnitude_vector": lengths}
    adapter = write_peft_adapter(tmp_path / "adapter", tensors, use_dora=True)

    found = merged_rows(open_source(base, [adapter]), f"{QUERY}.weight")

    merged = _float32(hub_weights(LLAMA)[f"{QUERY}.weight"]) + 2 * _product(pair, QUERY)
    exact = merged * (_float32(lengths) / np.linalg.norm(merged, axis=1))[:, None]
    assert_rounded(found, exact)


def test_two_adapters_are_merged_one_after_the_other(base: Path, tmp_path: Path) -> None:
    """A second adapter is merged into what the first one made, and both are rounded once."""
    first, second = lora_pair(QUERY, (128, 128)), lora_pair(QUERY, (128, 128), seed=9)
    folders = [write_peft_adapter(tmp_path / str(n), pair) for n, pair in enumerate((first, second))]

    found = merged_rows(open_source(base, folders), f"{QUERY}.weight")

    exact = _float32(hub_weights(LLAMA)[f"{QUERY}.weight"]) + 2 * (_product(first, QUERY) + _product(second, QUERY))
    assert_rounded(found, exact)


def test_block_fp8_is_merged_after_its_dequantisation(tmp_path: Path) -> None:
    """DeepSeek's own FP8 is what it published, so an adapter is merged into the bfloat16 that it stands for."""
    base = write_fp8_checkpoint(tmp_path / "base", DEEPSEEK_V3)
    module = "model.layers.1.mlp.experts.3.up_proj"
    pair = lora_pair(module, (128, 256))
    adapter = write_peft_adapter(tmp_path / "adapter", pair)

    found = merged_rows(open_source(base, [adapter]), f"{module}.weight")

    exact = merged_rows(open_source(base), f"{module}.weight") + 2 * _product(pair, module)
    assert_rounded(found, exact)


def test_an_unquantised_gguf_is_a_base_too(tmp_path: Path) -> None:
    """Rows that llama.cpp reordered are put in order before an adapter is merged into them."""
    weights = hub_weights(GGUF_LLAMA)
    write_gguf(tmp_path / "m.gguf", GGUF_LLAMA, weights, kind=GGMLQuantizationType.BF16)
    write_gguf(tmp_path / "quantized.gguf", GGUF_LLAMA, weights, kind=GGMLQuantizationType.Q8_0)
    pair = lora_pair(QUERY, (256, 256))
    adapter = write_peft_adapter(tmp_path / "adapter", pair)

    found = merged_rows(open_source(tmp_path / "m.gguf", [adapter]), f"{QUERY}.weight")

    assert np.allclose(found, _float32(weights[f"{QUERY}.weight"]) + 2 * _product(pair, QUERY), atol=1e-6)
    with pytest.raises(BadRecipe, match="is quantised"):
        open_source(tmp_path / "quantized.gguf", [adapter])


@pytest.mark.parametrize("fine_tune_type", ["lora", "dora"])
@pytest.mark.parametrize("config", [LLAMA, QWEN2], ids=["llama", "qwen2"])
def test_an_adapter_of_mlx_lm_is_what_mlx_lm_fuses(config: dict, fine_tune_type: str, tmp_path: Path) -> None:
    """An adapter that mlx-lm trained gives the weights of mlx-lm's own ``fuse``, on a base in float32."""
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    config = {**config, "torch_dtype": "float32"}
    weights = {name: array.astype(mx.float32) for name, array in hub_weights(config).items()}
    base = write_checkpoint(tmp_path / "base", config, weights=weights)
    model, _ = load_model(base)
    model.freeze()
    parameters = {"rank": 4, "scale": 12.0, "dropout": 0.0}
    linear_to_lora_layers(model, 1, parameters, use_dora=fine_tune_type == "dora")
    trained = {name: array + mx.random.normal(array.shape) * 0.02 for name, array in _trainable(model).items()}
    model.load_weights(list(trained.items()), strict=False)
    adapter = write_mlx_adapter(
        tmp_path / "adapter", trained, fine_tune_type=fine_tune_type, lora_parameters=parameters, num_layers=1
    )

    source = open_source(base, [adapter])

    fused = [(name, module.fuse()) for name, module in model.named_modules() if hasattr(module, "fuse")]
    assert fused
    model.update_modules(tree_unflatten(fused))
    for name, expected in tree_flatten(model.parameters()):
        assert np.allclose(merged_rows(source, name), np.array(expected), rtol=1e-5, atol=1e-6), name


def _trainable(model) -> dict[str, mx.array]:
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.trainable_parameters()))


def test_a_full_finetune_of_mlx_lm_replaces_its_tensors(base: Path, tmp_path: Path) -> None:
    """mlx-lm's «full» adapters hold whole tensors, which take the place of the base's."""
    norm = mx.random.normal((128,))
    adapter = write_mlx_adapter(tmp_path / "adapter", {"model.norm.weight": norm}, fine_tune_type="full")

    found = merged_rows(open_source(base, [adapter]), "model.norm.weight")

    assert np.array_equal(found, _float32(norm.astype(mx.bfloat16)))


def test_a_converted_adapter_changes_the_logits_as_much_as_the_merged_one(base: Path, tmp_path: Path) -> None:
    """The adapter is in the converted model: its weights are those of a conversion of the merged checkpoint."""
    pair = lora_pair(QUERY, (128, 128))
    adapter = write_peft_adapter(tmp_path / "adapter", pair)
    source = open_source(base, [adapter])
    merged = {name: mx.array(merged_rows(source, name)).astype(mx.bfloat16) for name in source.shapes()}
    by_hand = write_checkpoint(tmp_path / "by-hand", LLAMA, weights=merged)

    converted = _convert(source, tmp_path / "out", bits=4)

    expected = mx.load(str(_convert(open_source(by_hand), tmp_path / "expected", bits=4) / "model.safetensors"))
    found = mx.load(str(converted / "model.safetensors"))
    assert found.keys() == expected.keys()
    assert all(mx.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_effect_is_measured_on_the_converted_weights(bits: int, base: Path, tmp_path: Path) -> None:
    """What is reported is the change that the converted files really hold; wider weights hold it better."""
    pair = lora_pair(QUERY, (128, 128)) | lora_pair(DOWN, (128, 256), seed=2)
    source = open_source(base, [write_peft_adapter(tmp_path / "adapter", pair)])
    assert isinstance(source, AdaptedSource)

    effect = measure_effect(source, _convert(source, tmp_path / "out", bits=bits))

    assert (effect.changed_count, effect.zero_count) == (2, 0)
    weights = hub_weights(LLAMA)
    shares = [
        np.linalg.norm(2 * _product(pair, module)) / np.linalg.norm(_float32(weights[f"{module}.weight"]))
        for module in (QUERY, DOWN)
    ]
    assert effect.relative_change == pytest.approx(np.mean(shares), rel=0.1)
    assert effect.survival == pytest.approx(1.0, abs=0.25 if bits == 2 else 0.05)
    assert effect.correlation > {2: 0.3, 4: 0.8, 8: 0.99, 16: 0.999}[bits]
    assert not effect.is_lost


def test_a_model_without_the_adapter_is_found_out(base: Path, tmp_path: Path) -> None:
    """A conversion that lost the adapter says so: the base's own conversion is not mistaken for the merged one."""
    source = open_source(base, [write_peft_adapter(tmp_path / "adapter", lora_pair(QUERY, (128, 128)))])
    lost = _convert(open_source(base), tmp_path / "lost", bits=4)

    effect = measure_effect(source, lost)

    assert effect.is_lost
    assert "most of its effect is lost" in effect.sentence()


def test_experts_that_mlx_lm_trained_as_a_stack_are_merged_one_by_one(tmp_path: Path) -> None:
    """The result is what ``LoRASwitchLinear.fuse`` makes of the same stack, for every expert."""
    from mlx_lm.models.switch_layers import SwitchLinear
    from mlx_lm.tuner.lora import LoRASwitchLinear

    base = write_checkpoint(tmp_path / "base", DEEPSEEK_V3)
    module = "model.layers.1.mlp.switch_mlp.up_proj"
    halves = {
        f"{module}.lora_a": mx.random.normal((8, 4, 256), key=mx.random.key(1)) * 0.1,
        f"{module}.lora_b": mx.random.normal((8, 128, 4), key=mx.random.key(2)) * 0.1,
    }
    adapter = write_mlx_adapter(tmp_path / "adapter", halves, lora_parameters={"rank": 4, "scale": 3.0, "dropout": 0})
    source = open_source(base, [adapter])
    before = open_source(base)
    names = [f"model.layers.1.mlp.experts.{number}.up_proj.weight" for number in range(8)]
    stack = SwitchLinear(256, 128, 8, bias=False)
    stack.weight = mx.stack([before.rows(name, 0, 128).astype(mx.float32) for name in names])
    trained = LoRASwitchLinear.from_base(stack, r=4, scale=3.0)
    trained.lora_a, trained.lora_b = halves.values()

    out = _convert(source, tmp_path / "out", bits=16)

    exact = _float32(trained.fuse().weight)
    for number, name in enumerate(names):
        assert_rounded(merged_rows(source, name), exact[number])
    assert_rounded(_float32(mx.load(str(out / "model.safetensors"))[f"{module}.weight"]), exact)
    assert measure_effect(source, out).changed_count == 8


def test_the_effect_on_stacked_experts_is_measured(tmp_path: Path) -> None:
    """An expert's change is looked for in the stack that MLX keeps the experts in."""
    base = write_checkpoint(tmp_path / "base", DEEPSEEK_V3)
    module = "model.layers.1.mlp.experts.5.gate_proj"
    source = open_source(base, [write_peft_adapter(tmp_path / "adapter", lora_pair(module, (128, 256)))])

    effect = measure_effect(source, _convert(source, tmp_path / "out", bits=4))

    assert effect.changed_count == 1
    assert effect.survival == pytest.approx(1.0, abs=0.1)


def test_an_adapter_of_zeros_is_reported(base: Path, tmp_path: Path) -> None:
    """An adapter that was saved untrained is told before the conversion and after it."""
    pair = lora_pair(QUERY, (128, 128))
    pair[f"{QUERY}.lora_B.weight"] = mx.zeros((128, 4))
    source = open_source(base, [write_peft_adapter(tmp_path / "adapter", pair)])
    assert isinstance(source, AdaptedSource)

    effect = measure_effect(source, _convert(source, tmp_path / "out", bits=4))

    (note,) = source.notes()
    assert "changes nothing" in note
    assert effect.is_lost
    assert "changes nothing" in effect.sentence()


def test_tokens_that_a_finetune_added_come_with_its_tokenizer(base: Path, tmp_path: Path) -> None:
    """With a longer vocabulary the adapter's tokenizer is taken, and the converted config knows its size."""
    rows = mx.random.normal((352, 128))
    adapter = write_peft_adapter(tmp_path / "adapter", {"model.embed_tokens.weight": rows, "lm_head.weight": rows})
    (adapter / "tokenizer.json").write_text('{"the": "adapter\'s"}', encoding="utf-8")

    out = _convert(open_source(base, [adapter]), tmp_path / "out", bits=4)

    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["vocab_size"] == 352
    assert (out / "tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()
