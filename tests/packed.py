"""Small checkpoints in compressed-tensors' «pack-quantized», made from its documented layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from tests.checkpoints import hub_weights, write_checkpoint


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return unsigned codes ``[rows, columns]`` in int32 words, lowest bits first; the last word padded with zeros."""
    per_word = 32 // bits
    padded = np.pad(codes, [(0, 0), (0, -codes.shape[1] % per_word)]).astype(np.uint32)
    shifts = np.arange(per_word, dtype=np.uint32) * bits
    return (padded.reshape(codes.shape[0], -1, per_word) << shifts).sum(axis=-1, dtype=np.uint32).view(np.int32)


def packed_matrix(
    shape: tuple[int, int], *, group_size: int | None, bits: int = 4, symmetric: bool = True, seed: int = 0
) -> tuple[dict[str, mx.array], np.ndarray]:
    """Return a random matrix's stored parts by name, and the values that they stand for."""
    rng, (rows, columns) = np.random.default_rng(seed), shape
    group_size = group_size or columns
    codes = rng.integers(0, 2**bits, shape)
    scales = mx.array(rng.uniform(0.01, 0.1, (rows, columns // group_size)).astype(np.float32)).astype(mx.bfloat16)
    zeros = np.full((rows, columns // group_size), 2 ** (bits - 1))
    parts = {
        "weight_packed": mx.array(pack_codes(codes, bits)),
        "weight_scale": scales,
        "weight_shape": mx.array(shape, dtype=mx.int64),
    }
    if not symmetric:
        zeros = rng.integers(0, 2**bits, zeros.shape)
        parts["weight_zero_point"] = mx.array(np.ascontiguousarray(pack_codes(zeros.T, bits).T))
    levels = (codes - zeros.repeat(group_size, axis=1)).astype(np.float32)
    return parts, levels * np.array(scales.astype(mx.float32)).repeat(group_size, axis=1)


def write_packed_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    *,
    group_size: int | None,
    bits: int = 4,
    symmetric: bool = True,
    only: str = "_proj.weight",
    extra: Mapping[str, mx.array] | None = None,
) -> tuple[Path, dict[str, np.ndarray]]:
    """Write a checkpoint whose matrices named *only* are packed, and return what those stand for by name."""
    weights, exact = {}, {}
    for index, (name, values) in enumerate(hub_weights(config).items()):
        if only not in name:
            weights[name] = values
            continue
        parts, exact[name] = packed_matrix(
            values.shape, group_size=group_size, bits=bits, symmetric=symmetric, seed=index
        )
        weights |= {name.removesuffix("weight") + part: array for part, array in parts.items()}
    for name, array in (extra or {}).items():
        weights.pop(name.rpartition(".")[0] + ".weight", None)
        weights[name] = array
    scheme = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group" if group_size else "channel",
        "group_size": group_size,
    }
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
    }
    write_checkpoint(folder, {**config, "quantization_config": quantization}, weights=weights)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    return folder, exact
