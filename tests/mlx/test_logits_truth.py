"""Logits beside transformers in float32: at once, token by token, and in uneven steps.

What transformers gave is recorded in tests/vectors/logits.npz, for weights that numpy makes anew. With torch installed it is
asked again; ``UPDATE_GOLDEN=write`` then records it (torch 2.x and transformers 5.23 did).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from r1mac.catalog.arch import parse_arch
from r1mac.engine.layers.kv import make_kv_cache
from r1mac.engine.load import Engine, load_engine
from r1mac.plan import latent_blocks
from r1mac.plan.compute import Compute
from tests.checkpoints import DEEPSEEK_V3, LLAMA, QWEN2, QWEN3, write_checkpoint
from tests.generators import value_of

VECTORS = Path(__file__).parents[1] / "vectors" / "logits.npz"
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 320,
    "torch_dtype": "float32",
}
# As DeepSeek-R1-0528-Qwen3-8B has it, for a shorter original context: the factor undoes YaRN's own of 1.1386.
YARN_QWEN3 = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "attn_factor": 0.8782488562869419,
}
YARN_R1 = {"type": "yarn", "factor": 40.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA, **SMALL, "head_dim": 16},
    "qwen2": {**QWEN2, **SMALL},
    "qwen3": {**QWEN3, **SMALL},
    "qwen3 0528": {**QWEN3, **SMALL, "rope_scaling": YARN_QWEN3},
    "deepseek_v3": {
        **DEEPSEEK_V3,
        **SMALL,
        "num_hidden_layers": 3,
        "moe_intermediate_size": 32,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "n_group": 4,
        "topk_group": 2,
        "q_lora_rank": 48,
        "kv_lora_rank": 48,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 24,
        "v_head_dim": 32,
        "rope_scaling": {**YARN_R1, "original_max_position_embeddings": 16},
    },
}
TOKEN_IDS = [(37 * index + index * index // 5) % 300 for index in range(60)]
# Enough to see every layer; all 320 would be four times the file.
RECORDED_IDS = slice(0, 320, 5)
STEPS = {"at once": [60], "singly": [1] * 60, "uneven": [23, 1, 7, 2, 27], "a verified draft": [50, 4, 1, 5]}


def make_weights(config: Mapping[str, Any]) -> dict[str, mx.array]:
    """Return random float32 weights under the Hub's names, the same on every computer."""
    random = np.random.default_rng(6)
    weights = {}
    for tensor in parse_arch(config).tensors:
        norm = tensor.name.endswith("norm.weight")
        values = (random.standard_normal(tensor.shape) * 0.15 + (1 if norm else 0)).astype(np.float32)
        if ".switch_mlp." in tensor.name:
            for index in range(tensor.shape[0]):
                weights[tensor.name.replace("switch_mlp", f"experts.{index}")] = values[index]
        elif tensor.name.endswith("embed_q.weight"):
            rows = tensor.shape[0] * (tensor.shape[2] + config["v_head_dim"])
            kv_b = (random.standard_normal((rows, tensor.shape[1])) * 0.15).astype(np.float32)
            weights[tensor.name.replace("embed_q", "kv_b_proj")] = kv_b
        elif not tensor.name.endswith("unembed_out.weight"):
            weights[tensor.name] = values
    return {name: mx.array(values) for name, values in weights.items()}


def transformers_logits(config: Mapping[str, Any], folder: Path) -> np.ndarray:
    """Return the logits ``[tokens, vocabulary]`` of transformers; needs torch."""
    import torch
    from transformers import AutoModelForCausalLM

    scaling = dict(config.get("rope_scaling") or {})
    if "attn_factor" in scaling:
        # transformers knows the factor by another name, and there it is the whole one.
        factor = scaling.pop("attn_factor")
        config = {
            **config,
            "rope_scaling": {**scaling, "attention_factor": factor * (0.1 * np.log(scaling["factor"]) + 1)},
        }
    write_checkpoint(folder, config, weights=make_weights(config))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([TOKEN_IDS])).logits[0].numpy()


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    """Each shape as r1mac loads it."""
    found = {}
    for name, config in SHAPES.items():
        folder = write_checkpoint(tmp_path_factory.mktemp("logits") / "model", config, weights=make_weights(config))
        found[name] = value_of(load_engine(folder, compute=Compute.FLOAT32, context_tokens=100, prefill_step_tokens=16))
    return found


def our_logits(engine: Engine, steps: list[int]) -> np.ndarray:
    """Return the logits of reading the tokens in these steps, with a cache of 16 bits."""
    cache, start, found = make_kv_cache(engine.model), 0, []
    for step in steps:
        found.append(np.array(engine.model(mx.array([TOKEN_IDS[start : start + step]]), cache=cache)[0]))
        start += step
    return np.concatenate(found)


@pytest.mark.parametrize("blocks", [None, 700], ids=["one block", "small blocks"])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_recorded_of_transformers(
    shape: str, steps: list[int], blocks: int | None, engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a prompt is read, the largest difference is below 1e-3; also where attention is cut into small blocks."""
    if blocks is not None:
        monkeypatch.setattr(latent_blocks, "VALUES_AT_ONCE", blocks)
        monkeypatch.setattr(latent_blocks, "LEAST_KEYS", 7)
    expected = np.load(VECTORS)[shape.replace(" ", "_")]

    found = our_logits(engines[shape], steps)

    assert np.abs(found[:, RECORDED_IDS] - expected).max() < 1e-3
    assert np.abs(expected).max() > 0.5


def test_without_a_cache_the_logits_are_the_same(engines: dict[str, Engine]) -> None:
    """A model called without a cache gives what it gives with one."""
    for shape, engine in engines.items():
        expected = np.load(VECTORS)[shape.replace(" ", "_")]
        found = np.array(engine.model(mx.array([TOKEN_IDS]))[0])
        assert np.abs(found[:, RECORDED_IDS] - expected).max() < 1e-3, shape


def test_the_record_is_what_transformers_says(tmp_path: Path) -> None:
    """Where torch is installed, transformers still gives what was recorded."""
    pytest.importorskip("torch", reason="torch is a gigabyte that nothing else here needs")
    found = {
        shape.replace(" ", "_"): transformers_logits(config, tmp_path / shape)[:, RECORDED_IDS]
        for shape, config in SHAPES.items()
    }
    if os.environ.get("UPDATE_GOLDEN") == "write":
        np.savez_compressed(VECTORS, **found)
    recorded = np.load(VECTORS)
    assert set(recorded) == set(found)
    assert {
        shape: float(np.abs(recorded[shape] - found[shape]).max())
        for shape in found
        if np.abs(recorded[shape] - found[shape]).max() > 1e-4
    } == {}
