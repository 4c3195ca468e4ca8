"""A checkpoint as DeepSeek publishes the 671B, small: block FP8 in many files, experts one after another."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1mac.formats.safetensors import TensorEntry, read_header
from tests.checkpoints import CONFIGS, write_fp8_checkpoint

MOE: dict[str, Any] = {
    **CONFIGS["deepseek_v3"],
    "num_hidden_layers": 4,
    "n_routed_experts": 32,
    "hidden_size": 512,
    "moe_intermediate_size": 256,
}


def write_moe_repository(folder: Path, *, file_count: int, config: Mapping[str, Any] = MOE) -> Path:
    """Write a checkpoint of about *file_count* weight files, so that a stack of experts lies in several of them."""
    write_fp8_checkpoint(folder, config)
    whole = folder / "model.safetensors"
    entries = sorted(read_header(whole).values(), key=_place)
    most_bytes = whole.stat().st_size // file_count
    groups: list[list[TensorEntry]] = [[]]
    for entry in entries:
        if groups[-1] and sum(other.size_bytes for other in groups[-1]) + entry.size_bytes > most_bytes:
            groups.append([])
        groups[-1].append(entry)
    content = whole.read_bytes()
    weight_map = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05}-of-{len(groups):06}.safetensors"
        weight_map |= dict.fromkeys((entry.name for entry in group), name)
        _write_file(folder / name, group, content)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A small one\n", encoding="utf-8")
    whole.unlink()
    return folder


def _place(entry: TensorEntry) -> tuple[int, int, str]:
    """Return where a tensor comes: by layer, then what every token passes, then expert by expert."""
    if match := re.match(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.", entry.name):
        return int(match[1]), 1 + int(match[2]), entry.name
    if match := re.match(r"model\.layers\.(\d+)\.", entry.name):
        return int(match[1]), 0, entry.name
    return -1 if "embed" in entry.name else 10**6, 0, entry.name


def _write_file(path: Path, group: list[TensorEntry], content: bytes) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for entry in group:
        stop = offset + entry.size_bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    data = b"".join(content[entry.start : entry.stop] for entry in group)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
