"""Conversions that fit to calibration statistics: plain MLX models, nearer to the original, resumable like others."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from r1mac import mlx_lm_api
from r1mac.convert.calibration import calibrate
from r1mac.convert.journal import RECORD_NAME
from r1mac.convert.pipeline import ConversionStarted, StepDone, convert
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from r1mac.engine.divergence import compare
from r1mac.errors import BadCheckpoint
from tests.checkpoints import CONFIGS, DEEPSEEK_V3, LLAMA, write_checkpoint, write_fp8_checkpoint

NUMBERS = np.random.default_rng(5)
# Half of the vocabulary: inputs that go together, as those of a language do.
CALIBRATION = NUMBERS.integers(0, 160, (6, 64)).tolist()
HELD_OUT = NUMBERS.integers(0, 160, (3, 64)).tolist()
# Fitting takes a second for half a million weights: one layer with experts, and few of them.
SMALL = {"num_hidden_layers": 2, "n_routed_experts": 4, "hidden_size": 128, "intermediate_size": 256}
KINDS = {**CONFIGS, "deepseek_v3": {**DEEPSEEK_V3, **SMALL}}


class Measured(NamedTuple):
    """A model and the statistics of what its matrices are given."""

    source: Path
    statistics: Path


@pytest.fixture(name="measured", scope="module")
def _measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Measured]:
    """Return a function that gives the model of a kind; each is measured once for all tests, which only read it."""
    folder = tmp_path_factory.mktemp("measured")

    @cache
    def measured(kind: str) -> Measured:
        source = write_checkpoint(folder / kind, KINDS[kind])
        return Measured(source, _calibrated(source, folder / f"{kind}-statistics"))

    return measured


def _calibrated(source: Path, folder: Path, sequences: list[list[int]] = CALIBRATION) -> Path:
    folder.mkdir()
    for _ in calibrate(open_source(source), sequences, folder):
        pass
    return folder


def _converted(source: Path, into: Path, statistics: Path | None, bits: int = 3, **options: Any) -> list[Any]:
    into.mkdir(exist_ok=True)
    return list(convert(open_source(source), plain(bits=bits), into, statistics=statistics, **options))


def _model(folder: Path) -> Any:
    model = mlx_lm_api.load_lazily(folder, {})
    model.set_dtype(mx.float32)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_loads_in_mlx_lm_has_the_same_size_and_is_nearer_to_the_original(
    kind: str, measured: Callable[[str], Measured], tmp_path: Path
) -> None:
    source, statistics = measured(kind)
    _converted(source, tmp_path / "rounded", None)
    _converted(source, tmp_path / "fitted", statistics)

    reference = _model(source)
    *_, rounded = compare(_model(tmp_path / "rounded"), reference, HELD_OUT)
    *_, fitted = compare(_model(tmp_path / "fitted"), reference, HELD_OUT)

    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("rounded", "fitted")]
    assert sizes[0] == sizes[1]
    assert json.loads((tmp_path / "fitted" / "config.json").read_text()) == json.loads(
        (tmp_path / "rounded" / "config.json").read_text()
    )
    # Random weights have no structure to use: real models gain far more (scripts/bench-quality).
    assert fitted.kl_nats < 0.9 * rounded.kl_nats


def test_a_conversion_that_was_stopped_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write_fp8_checkpoint(tmp_path / "source", KINDS["deepseek_v3"])
    statistics = _calibrated(source, tmp_path / "statistics")
    small_files = {"max_shard_bytes": 150_000}
    _converted(source, tmp_path / "whole", statistics, **small_files)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    steps = 0
    running = convert(open_source(source), plain(bits=3), stopped, statistics=statistics, **small_files)
    for event in running:
        steps += isinstance(event, StepDone)
        if steps == 3:
            running.close()

    events = _converted(source, stopped, statistics, **small_files)

    started = next(event for event in events if isinstance(event, ConversionStarted))
    assert started.whole_files >= 3
    assert not started.reasons
    names = sorted(path.name for path in stopped.glob("*.safetensors"))
    assert names == sorted(path.name for path in (tmp_path / "whole").glob("*.safetensors"))
    for name in names:
        assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("other", ["rounding", "another text"])
def test_what_was_made_otherwise_is_not_gone_on_with(
    other: str, measured: Callable[[str], Measured], tmp_path: Path
) -> None:
    source, statistics = measured("llama")
    into = tmp_path / "out"
    _converted(source, into, None if other == "rounding" else _calibrated(source, tmp_path / "second", HELD_OUT))

    events = _converted(source, into, statistics)

    started = next(event for event in events if isinstance(event, ConversionStarted))
    assert started.whole_files == 0
    assert "the calibration" in started.reasons[0]


def test_blocks_of_rows_of_any_size_give_the_same_codes(measured: Callable[[str], Measured], tmp_path: Path) -> None:
    source, statistics = measured("llama")
    _converted(source, tmp_path / "large", statistics)
    _converted(source, tmp_path / "small", statistics, block_bytes=60_000)

    large, small = (mx.load(str(tmp_path / name / "model.safetensors")) for name in ("large", "small"))

    codes = [name for name in large if large[name].dtype == mx.uint32]
    assert len(codes) > 10
    for name in codes:
        # Products of fewer rows are rounded otherwise, so a few codes fall on the other side.
        assert mx.mean(large[name] != small[name]).item() < 0.1


def test_experts_of_one_layer_are_fitted_to_their_own_tokens(
    measured: Callable[[str], Measured], tmp_path: Path
) -> None:
    source, statistics = measured("deepseek_v3")
    _converted(source, tmp_path / "rounded", None, bits=2)
    _converted(source, tmp_path / "fitted", statistics, bits=2)
    path = "model.layers.1.mlp.switch_mlp.down_proj"
    experts = [f"model.layers.1.mlp.experts.{number}.down_proj.weight" for number in range(4)]
    original = {name: values for file in source.glob("*.safetensors") for name, values in mx.load(str(file)).items()}
    weight = mx.stack([original[name].astype(mx.float32) for name in experts])
    known = mx.load(str(statistics / "block-00001.safetensors"))
    roots = mx.sqrt(known[f"{path}.moments"])
    second_moments = known[f"{path}.correlations.0"] * roots[:, None] * roots[..., None]

    losses = {}
    for name in ("rounded", "fitted"):
        stored = mx.load(str(tmp_path / name / "model.safetensors"))
        scales, biases = (stored[f"{path}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
        values = mx.dequantize(stored[f"{path}.weight"], scales, biases, group_size=64, bits=2)
        off = weight - values
        losses[name] = mx.sum((off @ second_moments) * off, axis=(1, 2))

    assert mx.all(losses["fitted"] < 0.8 * losses["rounded"])


def test_statistics_of_another_model_are_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", LLAMA)
    other = write_checkpoint(tmp_path / "other", {**LLAMA, "intermediate_size": 512})
    statistics = _calibrated(other, tmp_path / "statistics")

    with pytest.raises(BadCheckpoint, match="not of this model"):
        _converted(source, tmp_path / "out", statistics)

    assert not (tmp_path / "out" / "config.json").exists()
    assert not (tmp_path / "out" / RECORD_NAME).exists()
