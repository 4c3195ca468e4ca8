"""Small adapters made on the spot: PEFT's layout from its documentation, and what a merge must give."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from r1mac.convert.sources import Source

PEFT_PREFIX = "base_model.model."


def write_peft_adapter(folder: Path, tensors: Mapping[str, mx.array], **settings: Any) -> Path:
    """Write an adapter as PEFT saves one; names are those behind its ``base_model.model.``."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "my-org/base", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    named = {PEFT_PREFIX + name: array for name, array in tensors.items()}
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), named, metadata={"format": "pt"})
    return folder


def write_mlx_adapter(folder: Path, tensors: Mapping[str, mx.array], **settings: Any) -> Path:
    """Write an adapter as ``mlx_lm.lora`` saves one."""
    folder.mkdir(parents=True)
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0}, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tensors))
    return folder


def lora_pair(module: str, shape: tuple[int, int], *, rank: int = 4, seed: int = 1) -> dict[str, mx.array]:
    """Return PEFT's two matrices for a module whose weight has *shape*."""
    mx.random.seed(seed)
    rows, columns = shape
    return {
        f"{module}.lora_A.weight": mx.random.normal((rank, columns)) * 0.1,
        f"{module}.lora_B.weight": mx.random.normal((rows, rank)) * 0.1,
    }


def merged_rows(source: Source, name: str, *, step: int = 7) -> np.ndarray:
    """Return a whole tensor of *source* as float32, read in blocks of odd sizes as a conversion might."""
    shape = source.shapes()[name]
    step = -(-step // source.row_step(name)) * source.row_step(name)
    blocks = [source.rows(name, start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
    return np.array(mx.concatenate(blocks).astype(mx.float32))


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    """Return float32 values rounded to bfloat16."""
    return np.array(mx.array(values.astype(np.float32)).astype(mx.bfloat16).astype(mx.float32))


def assert_rounded(found: np.ndarray, exact: np.ndarray) -> None:
    """Assert that *found* is *exact* within one rounding to bfloat16, and not only roughly the same."""
    assert found.shape == exact.shape
    expected = as_bfloat16(exact)
    # float32 sums in another order may fall on the other side of a rounding's edge: one step, and seldom.
    assert np.all(np.abs(found - exact) <= np.abs(exact) * 2.0**-8 * 1.01 + 1e-7)
    assert np.mean(found != expected) < 1e-3
