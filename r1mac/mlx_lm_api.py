"""Every name that r1mac takes from mlx-lm, in one place: mlx-lm renames between patch releases.

Written for mlx-lm 0.32.2. Importing this module costs about a second (mlx-lm imports transformers), so it is
imported only where a model is built or loaded.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import create_attention_mask
from mlx_lm.models.deepseek_v3 import DeepseekV3Attention, MoEGate
from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.utils import _get_classes, load_model

__all__ = [
    "DeepseekV3Attention",
    "MoEGate",
    "MultiLinear",
    "QuantizedMultiLinear",
    "QuantizedSwitchLinear",
    "SwitchLinear",
    "batch_generator",
    "create_attention_mask",
    "load_lazily",
    "model_skeleton",
]


def model_skeleton(config: dict[str, Any]) -> nn.Module:
    """Return the model that *config* describes, its weights lazy random arrays that take no memory.

    Raises:
        ValueError: mlx-lm does not know the model type.
        KeyError, TypeError: a field of *config* is missing or of the wrong kind.
    """
    model_class, args_class = _get_classes(config)
    return model_class(args_class.from_dict(config))


def load_lazily(folder: Path, config_changes: dict[str, Any]) -> nn.Module:
    """Return the model in *folder* with weights that are read from disk when they are first used.

    Raises:
        ValueError: the weights and the architecture do not match.
    """
    model, _ = load_model(folder, lazy=True, strict=True, model_config=config_changes)
    return model


def batch_generator(model: nn.Module, *, most_rows: int) -> BatchGenerator:
    """Return a generator of several replies at once, which leaves MLX's limits as they are."""
    generator = BatchGenerator(
        model,
        completion_batch_size=most_rows,
        prefill_batch_size=most_rows,
        stream=mx.default_stream(mx.default_device()),
    )
    # It wires all that Metal recommends; r1mac has wired what its plan needs, and no more.
    if generator._old_wired_limit is not None:  # noqa: SLF001 - nowhere else does it say what the limit was
        mx.set_wired_limit(generator._old_wired_limit)  # noqa: SLF001
    return generator
