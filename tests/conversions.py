"""The same checkpoint converted by r1mac and by mlx-lm, and what is compared of the two."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import Recipe
from r1mac.convert.sources import open_source
from r1mac.engine.load import load_engine
from r1mac.plan.compute import Compute
from tests.generators import value_of


def by_r1mac(source: Path, folder: Path, recipe: Recipe) -> Path:
    """Convert *source* into the new *folder* as r1mac does, and return it."""
    folder.mkdir()
    for _ in convert(open_source(source), recipe, folder):
        pass
    return folder


def by_mlx_lm(
    source: Path,
    folder: Path,
    recipe: Recipe,
    *,
    predicate: Callable[[str, Any], bool | dict[str, Any]] | None = None,
) -> Path:
    """Convert *source* into the new *folder* as ``mlx_lm.convert`` does, and return it."""
    from mlx_lm.convert import convert as mlx_lm_convert

    width = recipe.default
    with contextlib.redirect_stdout(io.StringIO()):
        mlx_lm_convert(
            str(source),
            str(folder),
            quantize=recipe.quantizes,
            q_bits=width.bits,
            q_group_size=width.group_size,
            q_mode=width.mode,
            quant_predicate=predicate,
        )
    return folder


def tensors_in(folder: Path) -> dict[str, mx.array]:
    """Return what mlx-lm would load of *folder*: every tensor of its weight files."""
    tensors: dict[str, mx.array] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= mx.load(str(path))
    return tensors


def assert_identical(ours: Path, theirs: Path) -> None:
    """Assert that two models have the same tensors, to the bit."""
    our_tensors, their_tensors = tensors_in(ours), tensors_in(theirs)

    assert our_tensors.keys() == their_tensors.keys()
    for name, expected in their_tensors.items():
        found = our_tensors[name]
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
        assert np.array_equal(_bits_of(found), _bits_of(expected)), name


def engine_logits(folder: Path, prompt: mx.array, compute: Compute) -> mx.array:
    """Return what r1mac's engine, computing in *compute*, answers to token ids ``[1, tokens]``."""
    steps = load_engine(folder, compute=compute, context_tokens=100, prefill_step_tokens=16)
    return value_of(steps).model(prompt)


def json_in(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _bits_of(values: mx.array) -> np.ndarray:
    return np.array(values.view(mx.uint16) if values.dtype == mx.bfloat16 else values)
