"""Block-FP8 checkpoints with other scales or blocks than DeepSeek's first ones."""

import json
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

from r1mac.formats.safetensors import read_header

Raw = tuple[str, tuple[int, ...], bytes]


def write_raw(path: Path, tensors: Mapping[str, Raw]) -> None:
    """Write a safetensors file of tensors as type, shape and bytes: MLX writes no FP8."""
    header, offset = {}, 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(content)]}
        offset += len(content)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(content for _, _, content in tensors.values()))


def use_power_of_two_scales(folder: Path, dtype: str) -> Path:
    """Round a block-FP8 checkpoint's scales up to powers of two, as F32 or as their exponents (F8_E8M0, U8)."""
    path = folder / "model.safetensors"
    content, tensors = path.read_bytes(), dict[str, Raw]()
    for name, entry in read_header(path).items():
        data = content[entry.start : entry.stop]
        tensors[name] = (entry.dtype, entry.shape, data)
        if name.endswith("_scale_inv"):
            exponents = np.ceil(np.log2(np.frombuffer(data, np.float32))).astype(np.int32) + 127
            stored = np.ldexp(1.0, exponents - 127).astype(np.float32) if dtype == "F32" else exponents.astype(np.uint8)
            tensors[name] = (dtype, entry.shape, stored.tobytes())
    write_raw(path, tensors)
    return folder


def write_fp8_matrix(folder: Path, codes: mx.array, scales: mx.array, block: tuple[int, int]) -> Path:
    """Write a folder with one FP8 matrix, ``one.weight``, whose scales are for blocks of another size."""
    folder.mkdir()
    raw: dict[str, Raw] = {
        "one.weight": ("F8_E4M3", tuple(codes.shape), np.array(codes).tobytes()),
        "one.weight_scale_inv": ("F32", tuple(scales.shape), np.array(scales).tobytes()),
    }
    write_raw(folder / "model.safetensors", raw)
    quantization = {"quant_method": "fp8", "weight_block_size": [*block]}
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}), encoding="utf-8")
    return folder
