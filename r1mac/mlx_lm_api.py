"""Every name that r1mac takes from mlx-lm, in one place: mlx-lm renames between patch releases.

Written for mlx-lm 0.32.2. Its models cost a tenth of a second to import; its generator and its own loader, which
import transformers, cost more than a second (four where torch is installed), so they are imported when they are needed.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
from mlx import nn

from r1mac.catalog.arch import SUPPORTED_MODEL_TYPES
from r1mac.formats.folder import read_config, weight_files


def _make_package_without_contents() -> None:
    """Have mlx-lm's modules importable without what the package imports by itself; that comes when it is asked for."""
    spec = importlib.util.find_spec("mlx_lm")
    if "mlx_lm" in sys.modules or spec is None or spec.loader is None:
        return
    package = importlib.util.module_from_spec(spec)

    def contents(name: str) -> Any:
        # PEP 562: called for names that are not there yet. Dunder names are the import system's own questions.
        if name.startswith("__"):
            raise AttributeError(name)
        if package.__dict__.pop("__getattr__", None) is not None:
            spec.loader.exec_module(package)  # type: ignore[union-attr]
        return getattr(package, name)

    package.__dict__["__getattr__"] = contents
    sys.modules["mlx_lm"] = package


_make_package_without_contents()

from mlx_lm.models.cache import create_attention_mask  # noqa: E402
from mlx_lm.models.deepseek_v3 import DeepseekV3Attention, MoEGate  # noqa: E402
from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear  # noqa: E402
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear  # noqa: E402

if TYPE_CHECKING:
    from mlx_lm.generate import BatchGenerator

_GROUPED = {"llama", "qwen2", "qwen3"}

__all__ = [
    "DeepseekV3Attention",
    "MoEGate",
    "MultiLinear",
    "QuantizedMultiLinear",
    "QuantizedSwitchLinear",
    "SwitchLinear",
    "batch_generator",
    "create_attention_mask",
    "is_grouped_attention",
    "load_lazily",
    "model_skeleton",
]


def model_skeleton(config: dict[str, Any]) -> nn.Module:
    """Return the model that *config* describes, its weights lazy random arrays that take no memory.

    Raises:
        ValueError: r1mac does not run the model type.
        KeyError, TypeError: a field of *config* is missing or of the wrong kind.
    """
    if config["model_type"] not in SUPPORTED_MODEL_TYPES:
        raise ValueError(f"model type {config['model_type']!r} is not one of {', '.join(SUPPORTED_MODEL_TYPES)}")
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    return module.Model(module.ModelArgs.from_dict(config))


def is_grouped_attention(kind: type) -> bool:
    """Tell whether *kind* is the attention of an architecture that caches keys and values of some heads.

    Their modules are alike: projections ``q_proj``, ``k_proj``, ``v_proj``, ``o_proj``, for Qwen3 the norms ``q_norm``
    and ``k_norm``, ``rope``, ``scale``, ``n_heads`` and ``n_kv_heads``.
    """
    return kind.__name__ == "Attention" and kind.__module__.removeprefix("mlx_lm.models.") in _GROUPED


def load_lazily(folder: Path, config_changes: dict[str, Any]) -> nn.Module:
    """Return the model in *folder* with weights that are read from disk when they are first used.

    Raises:
        ValueError: the weights and the architecture do not match.
    """
    config = read_config(folder) | config_changes
    if _is_plain(config, folder) and (model := _load_plain(folder, config)) is not None:
        return model
    from mlx_lm.utils import load_model

    model, _ = load_model(folder, lazy=True, strict=True, model_config=config_changes)
    return model


def _is_plain(config: dict[str, Any], folder: Path) -> bool:
    """Tell whether the weights are MLX's own: whole, or quantised as config.json says."""
    foreign = "quantization_config" in config and "quantization" not in config
    return not (
        foreign
        or config.get("model_type") not in SUPPORTED_MODEL_TYPES
        or any(config.get(name) for name in ("quantize_activations", "text_config"))
        or (folder / "hf_quant_config.json").exists()
    )


def _load_plain(folder: Path, config: dict[str, Any]) -> nn.Module | None:
    """Return the model; None where a matrix is not of the width that config.json says, which mlx-lm may guess."""
    weights: dict[str, mx.array] = {}
    for path in weight_files(folder):
        weights |= cast("dict[str, mx.array]", mx.load(str(path)))
    model = model_skeleton(config)
    weights = model.sanitize(weights)
    quantization = config.get("quantization")
    if quantization is not None:
        nn.quantize(
            model,
            group_size=quantization["group_size"],
            bits=quantization["bits"],
            mode=quantization.get("mode", "affine"),
            class_predicate=lambda path, module: quantization.get(
                path, hasattr(module, "to_quantized") and f"{path}.scales" in weights
            ),
        )
    model.eval()
    try:
        model.load_weights(list(weights.items()), strict=True)
    except ValueError:
        return None
    return model


def batch_generator(model: nn.Module, *, most_rows: int) -> "BatchGenerator":
    """Return a generator of several replies at once, which leaves MLX's limits as they are."""
    from mlx_lm.generate import BatchGenerator

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
