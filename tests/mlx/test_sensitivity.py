"""The divergence that is measured for a group is that of the model in which just this group is quantised."""

import functools
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from r1mac import mlx_lm_api
from r1mac.convert.calibrated_fit import CalibratedFit
from r1mac.convert.calibration import calibrate
from r1mac.convert.sensitivity import Sensitivity, group_of, measure_sensitivity
from r1mac.convert.sources import open_source
from r1mac.engine.divergence import compare
from r1mac.plan.memory import Quantization
from tests.checkpoints import CONFIGS, write_checkpoint

SEQUENCES = np.random.default_rng(2).integers(0, 320, (2, 40)).tolist()
THREE, FOUR = Quantization(bits=3), Quantization(bits=4)


@pytest.fixture(scope="module", name="measured")
def _measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, Sensitivity]]:
    """Return a function that gives a checkpoint of an architecture, its statistics, and what was measured of it."""

    @functools.cache
    def measured(kind: str) -> tuple[Path, Path, Sensitivity]:
        source = write_checkpoint(tmp_path_factory.mktemp("source"), CONFIGS[kind])
        statistics, opened = tmp_path_factory.mktemp("statistics"), open_source(source)
        for _ in calibrate(opened, SEQUENCES, statistics):
            pass
        *_, (_, _, known) = measure_sensitivity(opened, statistics, SEQUENCES, width=THREE, others=[FOUR])
        return source, statistics, known

    return measured


def _quantized(fit: CalibratedFit | None, path: str, weight: mx.array, width: Quantization) -> mx.array:
    size = {"group_size": width.group_size, "bits": width.bits}
    if fit is None:
        arrays = mx.quantize(weight.astype(mx.bfloat16), **size)  # type: ignore[arg-type]
    else:
        arrays = fit.quantize(path, weight.shape, 0, width, mx.bfloat16, weight)
    codes, scales, biases = arrays[0], arrays[1].astype(mx.float32), arrays[2].astype(mx.float32)
    return mx.dequantize(codes, scales, biases, **size).reshape(weight.shape)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "group"),
    [
        ("llama", "self_attn.v_proj 1/3"),
        ("llama", "lm_head"),
        ("llama", "model.embed_tokens"),
        ("qwen2", "mlp.down_proj 2/3"),
        ("qwen2", "model.embed_tokens"),
        ("deepseek_v3", "mlp.switch_mlp.gate_proj 2/3"),
        ("deepseek_v3", "self_attn.embed_q 3/3"),
    ],
)
def test_a_groups_divergence_is_that_of_the_model_with_it_alone_quantised(
    kind: str, group: str, measured: Callable[[str], tuple[Path, Path, Sensitivity]]
) -> None:
    source, statistics, known = measured(kind)
    reference, changed = mlx_lm_api.load_lazily(source, {}), mlx_lm_api.load_lazily(source, {})
    reference.set_dtype(mx.float32)
    changed.set_dtype(mx.float32)
    fit = CalibratedFit(statistics, sweeps=0)
    for path, module in changed.named_modules():
        if known.groups.get(path) == group:
            # The embedding of a model that has a head is rounded: its input is no vector that could be measured.
            rounds = (kind, path) == ("llama", "model.embed_tokens")
            module.weight = _quantized(None if rounds else fit, path, module.weight, THREE)

    *_, found = compare(changed, reference, SEQUENCES)

    assert known.kl_nats[group] > 0
    assert known.kl_nats[group] == pytest.approx(found.kl_nats, rel=0.02)


def test_every_matrix_with_statistics_has_a_cost_that_falls_with_its_bits(
    measured: Callable[[str], tuple[Path, Path, Sensitivity]],
) -> None:
    _, _, known = measured("deepseek_v3")

    assert "model.layers.0.mlp.gate_proj" in known.groups
    assert "model.layers.2.mlp.switch_mlp.down_proj" in known.groups
    assert set(known.groups.values()) == set(known.kl_nats)
    for path in known.groups:
        assert 0 < known.cost(path, FOUR) < known.cost(path, THREE)
    whole = sum(known.cost(path, THREE) for path in known.groups)
    assert whole == pytest.approx(sum(known.kl_nats.values()))


def test_groups_are_kinds_of_matrices_in_a_third_of_the_layers() -> None:
    assert group_of("model.layers.0.mlp.up_proj", 30) == group_of("model.layers.9.mlp.up_proj", 30)
    assert group_of("model.layers.9.mlp.up_proj", 30) != group_of("model.layers.10.mlp.up_proj", 30)
    assert group_of("lm_head", 30) == "lm_head"
