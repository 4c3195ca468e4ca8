"""Finetunes as people publish them: other vocabularies, tied heads, tensors of their own, newer config.json."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from r1mac import mlx_lm_api
from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from r1mac.errors import BadCheckpoint
from tests.checkpoints import DEEPSEEK_V3, LLAMA, QWEN2, hub_weights, write_checkpoint

TOKEN_IDS = [0, 17, 200, 3, 42, 42, 99, 7]


def _converted(source: Path, folder: Path, *, bits: int = 16) -> Path:
    folder.mkdir()
    for _ in convert(open_source(source), plain(bits=bits, dtype="float32"), folder):
        pass
    return folder


def _logits(folder: Path) -> np.ndarray:
    return np.array(mlx_lm_api.load_lazily(folder, {})(mx.array([TOKEN_IDS]))[0])


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "factor": 40.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("config", "scaling"),
    [(LLAMA, None), (LLAMA, LLAMA3_ROPE), (QWEN2, None), (DEEPSEEK_V3, YARN_ROPE)],
    ids=["llama", "llama3", "qwen2", "deepseek_v3"],
)
def test_a_config_of_transformers_5_computes_what_the_older_one_does(
    config: dict, scaling: dict | None, tmp_path: Path
) -> None:
    """Saved by transformers 5, config.json has ``rope_parameters`` alone; mlx-lm would take another rope_theta."""
    older = {**config, "rope_theta": 500000.0, "rope_scaling": scaling}
    newer = {key: value for key, value in older.items() if key not in {"rope_theta", "rope_scaling"}}
    newer["rope_parameters"] = {"rope_theta": 500000.0, **(scaling or {"rope_type": "default"})}
    folders = [write_checkpoint(tmp_path / name, c) for name, c in (("older", older), ("newer", newer))]

    expected, found = (_logits(_converted(folder, tmp_path / f"{folder.name}-out")) for folder in folders)

    assert np.array_equal(found, expected)
    # The test would see nothing if the setting had no effect.
    plain_one = write_checkpoint(tmp_path / "plain", {**config, "rope_theta": 10.0})
    assert not np.allclose(found, _logits(_converted(plain_one, tmp_path / "plain-out")), atol=1e-4)


def test_a_longer_vocabulary_works(tmp_path: Path) -> None:
    """A finetune with tokens of its own, in weights and config alike, is converted with them."""
    source = write_checkpoint(tmp_path / "source", {**LLAMA, "vocab_size": 384})

    out = _converted(source, tmp_path / "out", bits=4)

    assert _logits(out).shape == (len(TOKEN_IDS), 384)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_rows_that_the_config_does_not_know_are_refused_by_name(name: str, tmp_path: Path) -> None:
    """A matrix of more tokens than config.json says is named, with both sizes."""
    weights = hub_weights(LLAMA)
    weights[name] = mx.zeros((352, 128), dtype=mx.bfloat16)
    source = write_checkpoint(tmp_path / "source", LLAMA, weights=weights)

    with pytest.raises(BadCheckpoint, match=rf"{name} is \[352, 128\].*\[320, 128\]"):
        _converted(source, tmp_path / "out")


def test_the_head_of_a_tied_model_is_its_embedding(tmp_path: Path) -> None:
    """Some tools save the head of a tied model too; it is the embedding once more and is left out."""
    weights = hub_weights(QWEN2)
    saved = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}
    source = write_checkpoint(tmp_path / "source", QWEN2, weights=saved)
    reference = write_checkpoint(tmp_path / "reference", QWEN2, weights=weights)

    found = _logits(_converted(source, tmp_path / "out"))

    assert np.array_equal(found, _logits(_converted(reference, tmp_path / "expected")))


def test_tensors_of_its_own_are_refused_by_name(tmp_path: Path) -> None:
    """A value head, or whatever a finetune added, is not dropped in silence."""
    weights = {**hub_weights(LLAMA), "v_head.summary.weight": mx.zeros((1, 128))}
    source = write_checkpoint(tmp_path / "source", LLAMA, weights=weights)

    with pytest.raises(BadCheckpoint, match=r"v_head\.summary\.weight"):
        _converted(source, tmp_path / "out")


def test_the_type_is_read_from_the_newer_field(tmp_path: Path) -> None:
    """transformers 5 calls the type ``dtype``; a bfloat16 finetune with a float32 norm stays bfloat16."""
    config = {key: value for key, value in LLAMA.items() if key != "torch_dtype"} | {"dtype": "bfloat16"}
    weights = hub_weights(LLAMA)
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(mx.float32)
    source = write_checkpoint(tmp_path / "source", config, weights=weights)

    (tmp_path / "out").mkdir()
    for _ in convert(open_source(source), plain(bits=4), tmp_path / "out"):
        pass

    assert mx.load(str(tmp_path / "out" / "model.safetensors"))["model.norm.weight"].dtype == mx.bfloat16
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["vocab_size"] == 320
