"""The tensors that a conversion writes are those of mlx-lm's own model, and their sizes are known beforehand."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from r1mac import mlx_lm_api
from r1mac.catalog.arch import parse_arch
from r1mac.catalog.models import all_models
from r1mac.convert.layout import layout_on_paper, plan_layout
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from r1mac.formats.safetensors import read_header
from r1mac.plan.memory import Quantization, weight_bytes
from tests.checkpoints import CONFIGS, DEEPSEEK_V3, LLAMA, QWEN3, write_checkpoint

VARIANTS: dict[str, dict[str, Any]] = {
    **CONFIGS,
    "tied llama": {**LLAMA, "tie_word_embeddings": True},
    "llama with head_dim": {**LLAMA, "head_dim": 64},
    "tied qwen3": {**QWEN3, "tie_word_embeddings": True},
    "deepseek_v3 without q_lora": {**DEEPSEEK_V3, "q_lora_rank": None},
    "deepseek_v3 without shared experts": {**DEEPSEEK_V3, "n_shared_experts": None},
    "deepseek_v3 with every second layer sparse": {**DEEPSEEK_V3, "moe_layer_freq": 2},
    "llama with biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "deepseek_v3 with biases": {**DEEPSEEK_V3, "attention_bias": True},
}


def _skeleton_tensors(config: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], bool, bool]]:
    """Return of mlx-lm's model each tensor's shape, whether it may be quantised, and whether its type may change."""
    model = mlx_lm_api.model_skeleton(config)
    modules = {name for name, module in model.named_modules() if hasattr(module, "to_quantized")}
    casts = getattr(model, "cast_predicate", lambda _name: True)
    return {
        name: (
            tuple(values.shape),
            name.endswith(".weight") and name.removesuffix(".weight") in modules,
            bool(casts(name)),
        )
        for name, values in tree_flatten(model.parameters())
    }


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_tensor_list_is_mlx_lms(kind: str) -> None:
    """Names, shapes, what may be quantised and what keeps its type: as in the model that mlx-lm builds."""
    config = VARIANTS[kind]

    ours = {
        tensor.name: (tensor.shape, tensor.role == "matrix", tensor.role != "float32")
        for tensor in parse_arch(config).tensors
    }

    assert ours == _skeleton_tensors(config)


@pytest.mark.parametrize(
    "model", [model for model in all_models() if model.arch.layer_count <= 61], ids=lambda m: m.key
)
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 16])
def test_the_size_on_paper_is_the_plans(model: Any, bits: int) -> None:
    """Without any file the bytes are known: those that the plan and the catalog count with."""
    layout = layout_on_paper(model.arch, plain(bits=bits))

    assert layout.output_bytes - layout.prediction_bytes == weight_bytes(model.arch, Quantization(bits))
    assert layout.parameter_count == model.arch.parameter_count


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_layout_of_a_source_is_the_one_on_paper(kind: str, tmp_path: Path) -> None:
    """With files or without, the same tensors are written in the same types."""
    source = open_source(write_checkpoint(tmp_path / "source", CONFIGS[kind]))

    planned = plan_layout(source, plain(bits=4))

    assert planned.stored() == layout_on_paper(parse_arch(CONFIGS[kind]), plain(bits=4)).stored()


def test_a_type_of_its_own_is_kept_without_one_for_all(tmp_path: Path) -> None:
    """Where config.json names no type, each tensor keeps the one that it has."""
    config = {key: value for key, value in LLAMA.items() if key != "torch_dtype"}
    source = write_checkpoint(tmp_path / "source", config)
    path = next(source.glob("*.safetensors"))
    tensors = mx.load(str(path))
    name = next(name for name in tensors if name.endswith("norm.weight"))
    mx.eval(tensors)
    mx.save_safetensors(str(path), {**tensors, name: tensors[name].astype(mx.float32)}, metadata={"format": "pt"})
    assert read_header(path)[name].dtype == "F32"

    stored = {tensor.name: tensor.dtype for tensor in plan_layout(open_source(source), plain(bits=4)).stored()}

    assert stored[name] == "F32"
    assert stored["model.embed_tokens.scales"] == "BF16"
