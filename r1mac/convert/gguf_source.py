"""A GGUF file as a source: names, shapes and values as the Hugging Face model had them."""

import json
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from r1mac.convert import gguf_config, gguf_tokenizer, names
from r1mac.convert.gguf_parts import read_parts
from r1mac.errors import BadCheckpoint
from r1mac.formats.gguf import GGUFTensor

if TYPE_CHECKING:
    import numpy as np

UNQUANTIZED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# Recomputed from config.json, so it has no place among the weights.
_ROPE_FACTORS = "rope_freqs.weight"


class GGUFSource:
    """A GGUF model of the R1 family, in one file or several."""

    quantized_bits: float | None = None

    def __init__(self, path: Path) -> None:
        self._file, self._paths = read_parts(path)
        self.description = str(path)
        self._tensors = self._rename()
        self._shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        matrix_types = {tensor.type_name for tensor in self._tensors.values() if len(tensor.shape) > 1}
        self.default_dtype: str | None = _natural_type(matrix_types)
        self.is_quantized = bool(matrix_types - UNQUANTIZED.keys())
        self.config = gguf_config.build_config(self._file, tied="lm_head.weight" not in self._tensors)
        self.config["torch_dtype"] = self.default_dtype
        self._check_formats()
        # Built at once, so that a tokenizer that cannot be is known before any weight is converted.
        self._companions = gguf_tokenizer.tokenizer_files(self._file)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every tensor by name."""
        return self._shapes

    def size_bytes(self, name: str) -> int:
        """Return the bytes that a tensor takes in the source."""
        return int(self._tensors[name]._reader_tensor.n_bytes)  # noqa: SLF001

    def row_step(self, name: str) -> int:
        """Return the number of rows whose multiples ``rows`` may be asked for."""
        heads = self._permuted_heads(name)
        return self._tensors[name].shape[0] // heads if heads else 1

    def files(self, name: str) -> tuple[str, ...]:  # noqa: ARG002
        """Return nothing: the file is the source."""
        return ()

    def rows(self, name: str, start: int, stop: int) -> mx.array:
        """Return rows *start* to *stop* of a tensor in float32."""
        values = self._tensors[name].rows(start, stop)
        heads = self._permuted_heads(name)
        if heads:
            values = undo_rope_permutation(values, head_dim=self.row_step(name))
        return mx.array(values)

    def identity(self) -> Mapping[str, str]:
        """Return the size and time of the file."""
        return {path.name: f"{path.stat().st_size} {path.stat().st_mtime_ns}" for path in self._paths}

    def value_type(self, name: str) -> str:  # noqa: ARG002
        """Return the MLX type that ``rows`` gives."""
        return "float32"

    def write_companions(self, into: Path) -> None:
        """Write the tokenizer, its chat template and the generation settings that the metadata hold."""
        for name, text in self._companions.items():
            (into / name).write_text(text, encoding="utf-8")
        ids = gguf_tokenizer.end_token_ids(self._file)
        (into / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}, indent=2), encoding="utf-8")

    def _permuted_heads(self, name: str) -> int:
        """Return how many heads a tensor's rows were permuted in, or 0 where they were not.

        llama.cpp stores the query and key rows of llama models in the order of its own rotary embedding.
        """
        if self._file.architecture != "llama":
            return 0
        if name.endswith("self_attn.q_proj.weight"):
            return int(self.config["num_attention_heads"])
        if name.endswith("self_attn.k_proj.weight"):
            return int(self.config["num_key_value_heads"])
        return 0

    def _check_formats(self) -> None:
        """Read a little of each format at once: one that cannot be read would end the conversion half-way."""
        smallest = {
            tensor.type_name: tensor for tensor in sorted(self._tensors.values(), key=lambda found: -prod(found.shape))
        }
        for tensor in smallest.values():
            tensor.rows(0, 1)

    def _rename(self) -> dict[str, GGUFTensor]:
        if self._file.architecture not in gguf_config.ARCHITECTURES:
            raise BadCheckpoint(
                f"{self._file.path.name} is a {self._file.architecture or 'nameless'!r} model, which r1mac does not "
                "read from GGUF",
                hint=f"r1mac reads GGUF of {', '.join(gguf_config.ARCHITECTURES)}; for others convert the original",
            )
        tensors: dict[str, GGUFTensor] = {}
        layers = gguf_config.layer_count(self._file)
        for name, tensor in self._file.tensors.items():
            if _is_beyond(name, layers):
                continue
            new_name = names.from_gguf(name, self._file.architecture)
            if new_name is not None:
                tensors[new_name] = tensor
            elif name != _ROPE_FACTORS:
                raise BadCheckpoint(
                    f"{self._file.path.name} has a tensor {name} that r1mac does not know",
                    hint="convert the original weights instead",
                )
        for name in [name for name in tensors if name.endswith("kv_b_proj.weight")]:
            # Some files hold MLA's matrix whole and in halves; the halves are what MLX wants.
            if name.replace("kv_b_proj", "embed_q") in tensors:
                del tensors[name]
        return tensors


def _is_beyond(name: str, layers: int) -> bool:
    """Tell whether a tensor is of a layer after the model's last: one that predicts further tokens."""
    match = re.match(r"^blk\.(\d+)\.", name)
    return match is not None and int(match[1]) >= layers


def _natural_type(matrix_types: set[str]) -> str:
    """Return the type that keeps what a file's matrices say.

    One unquantised type is kept. Quantised files do not say which type the model was trained in: bfloat16 has
    float32's range, which Qwen2's activations need; float16 would keep three more bits of the scales.
    """
    only = next(iter(matrix_types)) if len(matrix_types) == 1 else None
    return UNQUANTIZED.get(only or "", "bfloat16")


def undo_rope_permutation(rows: "np.ndarray[Any, Any]", *, head_dim: int) -> "np.ndarray[Any, Any]":
    """Return query or key rows in Hugging Face's order.

    llama.cpp interleaves the two halves of each head (row 0 of the first half, row 0 of the second, row 1 …).

    Args:
        rows: whole heads, ``[heads x head_dim, columns]``.
        head_dim: rows of one head.
    """
    columns = rows.shape[-1]
    return rows.reshape(-1, head_dim // 2, 2, columns).swapaxes(1, 2).reshape(rows.shape)
