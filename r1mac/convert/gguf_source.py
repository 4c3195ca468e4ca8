"""A GGUF file as a source: names, shapes and values as the Hugging Face model had them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from r1mac.convert import gguf_config, gguf_tokenizer, names
from r1mac.errors import BadCheckpoint
from r1mac.formats.gguf import GGUFTensor, read_gguf

if TYPE_CHECKING:
    import numpy as np

# Recomputed from config.json, so it has no place among the weights.
_ROPE_FACTORS = "rope_freqs.weight"


class GGUFSource:
    """A GGUF file of a llama or qwen2 model."""

    def __init__(self, path: Path) -> None:
        self._file = read_gguf(path)
        if int(self._file.metadata.get("split.count", 1)) > 1:
            raise BadCheckpoint(
                f"{path.name} is one of {self._file.metadata['split.count']} parts, and r1mac reads only whole files",
                hint="join them with llama.cpp's `llama-gguf-split --merge`",
            )
        self.description = str(path)
        self._tensors = self._rename()
        self._shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.default_dtype: str | None = _natural_type(
            {t.type_name for t in self._tensors.values() if len(t.shape) > 1}
        )
        self.config = gguf_config.build_config(self._file, tied="lm_head.weight" not in self._tensors)
        self.config["torch_dtype"] = self.default_dtype
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

    def rows(self, name: str, start: int, stop: int) -> mx.array:
        """Return rows *start* to *stop* of a tensor in float32."""
        values = self._tensors[name].rows(start, stop)
        heads = self._permuted_heads(name)
        if heads:
            values = undo_rope_permutation(values, head_dim=self.row_step(name))
        return mx.array(values)

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

    def _rename(self) -> dict[str, GGUFTensor]:
        if self._file.architecture not in gguf_config.ARCHITECTURES:
            raise BadCheckpoint(
                f"{self._file.path.name} is a {self._file.architecture or 'nameless'!r} model, which r1mac does not "
                "read from GGUF",
                hint=f"r1mac reads GGUF of {' and '.join(gguf_config.ARCHITECTURES)}; for others convert the original",
            )
        tensors: dict[str, GGUFTensor] = {}
        for name, tensor in self._file.tensors.items():
            new_name = names.from_gguf(name)
            if new_name is not None:
                tensors[new_name] = tensor
            elif name != _ROPE_FACTORS:
                raise BadCheckpoint(
                    f"{self._file.path.name} has a tensor {name} that r1mac does not know",
                    hint="convert the original weights instead",
                )
        return tensors


def _natural_type(matrix_types: set[str]) -> str:
    """Return the type that keeps what a file's matrices say.

    One unquantised type is kept. Quantised files do not say which type the model was trained in: bfloat16 has
    float32's range, which Qwen2's activations need; float16 would keep three more bits of the scales.
    """
    unquantized = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    only = next(iter(matrix_types)) if len(matrix_types) == 1 else None
    return unquantized.get(only or "", "bfloat16")


def undo_rope_permutation(rows: "np.ndarray[Any, Any]", *, head_dim: int) -> "np.ndarray[Any, Any]":
    """Return query or key rows in Hugging Face's order.

    llama.cpp interleaves the two halves of each head (row 0 of the first half, row 0 of the second, row 1 …).

    Args:
        rows: whole heads, ``[heads x head_dim, columns]``.
        head_dim: rows of one head.
    """
    columns = rows.shape[-1]
    return rows.reshape(-1, head_dim // 2, 2, columns).swapaxes(1, 2).reshape(rows.shape)
