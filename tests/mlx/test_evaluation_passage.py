"""A model that streams through by blocks of rows computes what the whole model does, in memory that does not grow."""

import tracemalloc
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from r1mac import mlx_lm_api
from r1mac.convert import float_rows, passage_attention, passage_experts, products
from r1mac.convert.float_rows import FloatRows
from r1mac.convert.passage import Passage
from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.side_by_side import done_alone
from r1mac.convert.sources import open_source
from r1mac.engine.layers.router import install_router
from r1mac.errors import BadCheckpoint
from tests.checkpoints import CONFIGS, DEEPSEEK_V3, LLAMA, QWEN2, write_checkpoint, write_fp8_checkpoint

SEQUENCES = np.random.default_rng(1).integers(0, 320, (2, 24)).tolist()
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
DEEPSEEK_YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
KINDS: dict[str, dict[str, Any]] = {
    **CONFIGS,
    "llama 3's rope": {**LLAMA, "rope_scaling": LLAMA3_ROPE, "rope_theta": 500_000.0},
    "linear rope": {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "yarn": {**QWEN2, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "deepseek's yarn": {**DEEPSEEK_V3, "rope_scaling": DEEPSEEK_YARN},
    "biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "blocks in part": {**LLAMA, "intermediate_size": 192},
    "whole queries": {**DEEPSEEK_V3, "q_lora_rank": None},
}


def _logits(folder: Path, **options: Any) -> mx.array:
    passage = Passage(open_source(folder), **options)
    states = done_alone(passage.embedded(SEQUENCES))
    for number in range(passage.arch.layer_count):
        states = done_alone(passage.through(number, states))
    logits = done_alone(passage.logits(passage.normed(states), 0, passage.vocab_size))
    return mx.array(logits).reshape(*np.shape(SEQUENCES), -1)


def _wanted(folder: Path) -> mx.array:
    model = mlx_lm_api.load_lazily(folder, {})
    model.set_dtype(mx.float32)
    install_router(model)
    return model(mx.array(SEQUENCES))


def _converted(source: Path, into: Path, bits: int | str) -> Path:
    into.mkdir()
    for _ in convert(open_source(source), plain(bits=bits), into):
        pass
    return into


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_whole_model(kind: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", KINDS[kind])

    assert mx.allclose(_logits(source), _wanted(source), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [*(("llama", bits) for bits in (2, 3, 4, 5, 6, 8, "mxfp4")), ("deepseek_v3", 3), ("deepseek_v3", "mxfp4")],
)
def test_quantised_models_too(kind: str, bits: int | str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", CONFIGS[kind])
    made = _converted(source, tmp_path / "made", bits)

    assert mx.allclose(_logits(made), _wanted(made), atol=1e-4)


def test_blocks_of_few_rows_change_nothing(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3)

    assert mx.allclose(_logits(source, block_bytes=4096), _logits(source), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "bits"), [("llama", 16), ("blocks in part", 16), ("deepseek_v3", 16), ("deepseek_v3", 3)]
)
def test_what_a_gpu_would_compute_is_the_same(
    kind: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There MLX multiplies, and here numpy does."""
    source = write_fp8_checkpoint(tmp_path / "source", KINDS[kind])
    made = source if bits == 16 else _converted(source, tmp_path / "made", bits)
    wanted = _logits(made)
    for module in (float_rows, products, passage_attention, passage_experts):
        monkeypatch.setattr(module, "on_cpu", lambda: False)

    assert mx.allclose(_logits(made, block_bytes=2**18), wanted, atol=1e-4)


def test_block_fp8_is_multiplied_with_its_scales_and_not_rounded(tmp_path: Path) -> None:
    source = open_source(write_fp8_checkpoint(tmp_path / "source", DEEPSEEK_V3))
    rows = FloatRows(source)
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    stored = source.stored(name)
    scales = np.array(stored.scales.rows(0, 2)).repeat(128, axis=0).repeat(128, axis=1)
    wanted = np.array(mx.from_fp8(stored.codes.rows(0, 256), dtype=mx.float32)) * scales[:256, :128]

    found = np.array(rows.rows(name, 0, 256))

    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    rounded = np.array(source.rows(name, 0, 256).astype(mx.float32))
    np.testing.assert_allclose(found, rounded, rtol=2**-8)
    assert not np.array_equal(found, rounded)


def _peak_bytes(folder: Path) -> int:
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    tracemalloc.start()
    _logits(folder, block_bytes=2**16)
    _, python_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return python_bytes + mx.get_peak_memory() - before


def test_memory_does_not_grow_with_experts_and_layers(tmp_path: Path) -> None:
    small = {**DEEPSEEK_V3, "num_hidden_layers": 2, "n_routed_experts": 8}
    large = {**DEEPSEEK_V3, "num_hidden_layers": 4, "n_routed_experts": 32}
    sources = [write_checkpoint(tmp_path / name, one) for name, one in (("small", small), ("large", large))]
    sizes = [sum(path.stat().st_size for path in source.glob("*.safetensors")) for source in sources]
    _peak_bytes(sources[0])  # what is looked up is kept for good

    peaks = [_peak_bytes(source) for source in sources]

    assert sizes[1] > 4 * sizes[0]
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}, "sliding"),
        ({"hidden_act": "gelu"}, "'gelu'"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", {**LLAMA, **changes})

    with pytest.raises(BadCheckpoint, match=said):
        Passage(open_source(source))
