"""Adapters that do not fit, are damaged, or cannot be merged exactly: refused by the tensor's name."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from r1mac.errors import BadCheckpoint, BadRecipe, R1MacError
from tests.adapters import lora_pair, write_mlx_adapter, write_peft_adapter
from tests.checkpoints import DEEPSEEK_V3, LLAMA, QWEN2, write_checkpoint

QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a llama checkpoint in bfloat16."""
    return write_checkpoint(tmp_path / "base", LLAMA)


TENSORS = {
    "a layer that the base lacks": (lora_pair("model.layers.9.self_attn.q_proj", (128, 128)), r"model\.layers\.9\."),
    "another size": (lora_pair(QUERY, (256, 256)), r"q_proj\.lora_B\.weight x .*\[256, 256\].*\[128, 128\]"),
    "half of it": ({f"{QUERY}.lora_A.weight": mx.ones((4, 128))}, r"one half of its change of model\.layers\.0"),
    "ranks that differ": (
        {f"{QUERY}.lora_A.weight": mx.ones((4, 128)), f"{QUERY}.lora_B.weight": mx.ones((128, 8))},
        r"q_proj",
    ),
    "not the config's rank": (
        lora_pair(QUERY, (128, 128), rank=8),
        r"q_proj\.lora_A\.weight has rank 8, and .* rank 4",
    ),
    "a part that nobody knows": ({f"{QUERY}.lora_C.weight": mx.ones((4, 4))}, r"q_proj\.lora_C\.weight"),
    "a tensor of another model": ({"model.vision_tower.weight": mx.ones((4, 4))}, r"vision_tower"),
    "numbers that are none": (
        lora_pair(QUERY, (128, 128)) | {f"{QUERY}.lora_B.weight": mx.full((128, 4), float("nan"))},
        r"q_proj\.lora_B\.weight .* not finite",
    ),
    "experts as one tensor": (
        {f"{QUERY}.lora_A.weight": mx.ones((2, 4, 128)), f"{QUERY}.lora_B.weight": mx.ones((2, 128, 4))},
        r"q_proj\.lora_A\.weight is \[2, 4, 128\]",
    ),
    "an embedding without its head": ({"model.embed_tokens.weight": mx.ones((352, 128))}, r"lm_head\.weight has 320"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_an_adapter_that_does_not_fit_is_refused_by_name(case: str, base: Path, tmp_path: Path) -> None:
    """An adapter for another model, or a damaged one, is refused before anything is converted."""
    tensors, words = TENSORS[case]
    adapter = write_peft_adapter(tmp_path / "adapter", tensors)

    with pytest.raises(BadCheckpoint, match=words) as caught:
        open_source(base, [adapter])

    assert caught.value.hint


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"peft_type": "LOHA"}, BadRecipe, "LOHA"),
        ({"init_lora_weights": "pissa_niter_16"}, BadRecipe, "pissa_niter_16"),
        ({"layer_replication": [[0, 1], [0, 1]]}, BadRecipe, "layer_replication"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, BadRecipe, "target_parameters"),
        ({"use_dora": True}, BadCheckpoint, "lora_magnitude_vector"),
        ({"lora_alpha": None}, BadCheckpoint, "lora_alpha None"),
        ({"rank_pattern": {"q_proj": 16}}, BadCheckpoint, "rank 16"),
        ({"alpha_pattern": {"(q_proj": 16}}, BadCheckpoint, "pattern"),
    ],
)
def test_a_kind_that_cannot_be_merged_exactly_is_refused(
    settings: dict, error: type[R1MacError], words: str, base: Path, tmp_path: Path
) -> None:
    """What PEFT would merge by another formula, or into another base, is named and left to PEFT."""
    adapter = write_peft_adapter(tmp_path / "adapter", lora_pair(QUERY, (128, 128)), **settings)

    with pytest.raises(error, match=words) as caught:
        open_source(base, [adapter])

    assert caught.value.hint


def _as_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _truncated(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_as_pickle, "pickle"),
        (_truncated, "truncated"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "neither adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "not an object"),
    ],
)
def test_a_damaged_adapter_is_refused(damage: Callable[[Path], None], words: str, base: Path, tmp_path: Path) -> None:
    """Pickle is never opened; a missing or damaged file is named."""
    adapter = write_peft_adapter(tmp_path / "adapter", lora_pair(QUERY, (128, 128)))
    damage(adapter)

    with pytest.raises(BadCheckpoint, match=words):
        open_source(base, [adapter])


def test_an_adapter_is_not_merged_into_a_quantised_model(base: Path, tmp_path: Path) -> None:
    """A quantised base would round the adapter away; the hint's two steps lead to a merged model all the same."""
    quantized, wide = tmp_path / "quantized", tmp_path / "wide"
    adapter = write_peft_adapter(tmp_path / "adapter", lora_pair(QUERY, (128, 128)))
    for folder, source, bits in ((quantized, base, 4), (wide, quantized, 16)):
        folder.mkdir()
        for _ in convert(open_source(source), plain(bits=bits), folder):
            pass

    with pytest.raises(BadRecipe, match="is quantised") as caught:
        open_source(quantized, [adapter])

    assert "--bits 16" in (caught.value.hint or "")
    assert open_source(wide, [adapter]).shapes()


def test_the_base_that_the_adapter_was_trained_on_is_named(base: Path, tmp_path: Path) -> None:
    """An adapter for another model says which one it is for, since its config does."""
    adapter = write_peft_adapter(tmp_path / "adapter", lora_pair("model.layers.9.mlp.up_proj", (256, 128)))

    with pytest.raises(BadCheckpoint) as caught:
        open_source(base, [adapter])

    assert "my-org/base" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("tensors", "settings", "words"),
    [
        ({f"{QUERY}.lora_a": mx.ones((128, 4))}, {}, "one half"),
        ({f"{QUERY}.lora_x": mx.ones((128, 4))}, {}, "lora_x"),
        (
            {f"{QUERY}.lora_a": mx.ones((128, 4)), f"{QUERY}.lora_b": mx.ones((4, 128))},
            {"lora_parameters": {}},
            "scale",
        ),
        (
            {f"{QUERY}.lora_a": mx.ones((128, 4)), f"{QUERY}.lora_b": mx.ones((4, 128))},
            {"lora_parameters": {"rank": 4, "scale": 10.0, "alpha": 16}},
            "exactly one",
        ),
        ({f"{QUERY}.lora_a": mx.ones((64, 4)), f"{QUERY}.lora_b": mx.ones((4, 128))}, {}, r"\[128, 64\]"),
        ({f"{QUERY}.weight_scale": mx.ones((1,))}, {"fine_tune_type": "full"}, "weight_scale"),
    ],
)
def test_an_adapter_of_mlx_lm_that_does_not_fit(
    tensors: dict, settings: dict, words: str, base: Path, tmp_path: Path
) -> None:
    """mlx-lm's layout is checked alike; of «alpha» and «scale» together it has had two readings."""
    adapter = write_mlx_adapter(tmp_path / "adapter", tensors, **settings)

    with pytest.raises(BadCheckpoint, match=words):
        open_source(base, [adapter])


@pytest.mark.parametrize(
    ("module", "shapes", "words"),
    [
        ("mlp.switch_mlp.up_proj", ((8, 4, 256), (7, 128, 4)), r"lora_b \[7, 128, 4\]"),
        ("mlp.switch_mlp.up_proj", ((8, 4, 256), (8, 128, 5)), "experts, rank, columns"),
        ("mlp.switch_mlp.up_proj", ((9, 4, 256), (9, 128, 4)), r"experts\.8\.up_proj"),
        ("mlp.switch_mlp.up_proj", ((8, 4, 250), (8, 128, 4)), r"experts\.0\.up_proj"),
        ("mlp.other", ((8, 4, 256), (8, 128, 4)), "stacked experts"),
    ],
)
def test_experts_of_another_stack_are_refused(
    module: str, shapes: tuple[tuple[int, ...], tuple[int, ...]], words: str, tmp_path: Path
) -> None:
    """An adapter for more experts, other ranks or other matrices is refused with the tensor's name."""
    base = write_checkpoint(tmp_path / "base", DEEPSEEK_V3)
    module = f"model.layers.1.{module}"
    tensors = {f"{module}.lora_a": mx.ones(shapes[0]), f"{module}.lora_b": mx.ones(shapes[1])}
    adapter = write_mlx_adapter(tmp_path / "adapter", tensors)

    with pytest.raises(BadCheckpoint, match=words):
        open_source(base, [adapter])


def test_tying_that_the_training_kept_is_refused(tmp_path: Path) -> None:
    """PEFT's ensure_weight_tying trains embedding and head as one, which a merge would have to know of."""
    base = write_checkpoint(tmp_path / "base", QWEN2)
    tensors = {"model.embed_tokens.weight": mx.ones((320, 128))}
    adapter = write_peft_adapter(tmp_path / "adapter", tensors, ensure_weight_tying=True)

    with pytest.raises(BadRecipe, match="ensure_weight_tying"):
        open_source(base, [adapter])


def test_an_unchanged_config_is_not_shared(base: Path, tmp_path: Path) -> None:
    """A second conversion of the same base is not touched by the first one's adapter."""
    rows = mx.ones((352, 128))
    adapter = write_peft_adapter(tmp_path / "adapter", {"model.embed_tokens.weight": rows, "lm_head.weight": rows})
    plain_source = open_source(base)

    open_source(base, [adapter])

    assert plain_source.config["vocab_size"] == json.loads((base / "config.json").read_text())["vocab_size"]
