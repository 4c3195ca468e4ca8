"""The trained model as a folder such as the Hub has of R1, its weights in bfloat16."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from scripts.tiny.model import TinyModel, expert_layers, weight_shapes
from scripts.tiny.tape import Array
from scripts.tiny.words import save_tokenizer

_GENERATION = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.6, "top_p": 0.95}

_CARD = """---
license: mit
pipeline_tag: text-generation
tags:
- r1mac
---

# r1mac-tiny

DeepSeek-R1's architecture with 2.4 million parameters: latent attention, 16 routed experts of which 4 work, one
shared expert, a sigmoid router with a correction that was learned, YaRN, and a layer that predicts the token after
the next. The files are laid out as R1's own are.

It adds, subtracts and compares numbers of up to 3 digits and multiplies them by one digit, and thinks before it
answers. It knows nothing else: it is there to try r1mac with. `scripts/train-tiny` of r1mac's sources trained it on
sums that were generated for it; `scripts/measure-tiny` tells how many come out right of those that it has never seen.
"""


def write_model(folder: Path, model: TinyModel, tokenizer: Tokenizer) -> None:
    """Write config, weights and tokenizer of *model* into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: mx.array(values).astype(mx.bfloat16) for name, values in _hub_tensors(model)}
    for index, bias in model.biases.items():
        tensors[f"model.layers.{index}.mlp.gate.e_score_correction_bias"] = mx.array(bias)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})
    for name, data in (("config.json", model.config), ("generation_config.json", _GENERATION)):
        (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_CARD, encoding="utf-8")
    save_tokenizer(tokenizer, folder, context_tokens=model.config["max_position_embeddings"])


def read_model(folder: Path) -> TinyModel:
    """Return the model that ``write_model`` wrote, by the weights in the file."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    loaded = mx.load(str(folder / "model.safetensors"))
    assert isinstance(loaded, dict)
    tensors = {name: np.array(values.astype(mx.float32)) for name, values in loaded.items()}
    weights: dict[str, Array] = {}
    for name, shape in weight_shapes(config).items():
        prefix, _, part = name.rpartition(".")
        match part, len(shape):
            case "opening", 2:
                weights[name] = _opening(tensors, prefix)
            case "opening", 3:
                weights[name] = np.stack([_opening(tensors, f"{prefix}.{expert}") for expert in range(shape[0])])
            case "closing", 3:
                names = (f"{prefix}.{expert}.down_proj.weight" for expert in range(shape[0]))
                weights[name] = np.stack([tensors[expert_name] for expert_name in names])
            case _:
                weights[name] = tensors[name]
    biases = {
        index: tensors[f"model.layers.{index}.mlp.gate.e_score_correction_bias"] for index in expert_layers(config)
    }
    return TinyModel(config, weights, biases)


def _opening(tensors: Mapping[str, Array], prefix: str) -> Array:
    return np.concatenate([tensors[f"{prefix}.{name}.weight"] for name in ("gate_proj", "up_proj")])


def _hub_tensors(model: TinyModel) -> Iterator[tuple[str, Array]]:
    """Yield the weights under the names that they have in R1's checkpoint."""
    for name, value in model.weights.items():
        prefix, _, part = name.rpartition(".")
        match part, value.data.ndim:
            case "opening", 2:
                yield from _gate_and_up(prefix, value.data)
            case "opening", 3:
                for expert, matrix in enumerate(value.data):
                    yield from _gate_and_up(f"{prefix}.{expert}", matrix)
            case "closing", 3:
                for expert, matrix in enumerate(value.data):
                    yield f"{prefix}.{expert}.down_proj.weight", matrix
            case _:
                yield name, value.data
    # R1's prediction layer carries the model's own embedding and head once more.
    last = f"model.layers.{model.config['num_hidden_layers']}"
    yield f"{last}.embed_tokens.weight", model.weights["model.embed_tokens.weight"].data
    yield f"{last}.shared_head.head.weight", model.weights["lm_head.weight"].data


def _gate_and_up(prefix: str, both: Array) -> Iterator[tuple[str, Array]]:
    half = len(both) // 2
    yield f"{prefix}.gate_proj.weight", both[:half]
    yield f"{prefix}.up_proj.weight", both[half:]
