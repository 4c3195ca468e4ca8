"""An MLX model's weight files, laid out first and filled as the tensors come."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import mlx.core as mx
import numpy as np

from r1mac.formats.folder import INDEX_NAME
from r1mac.formats.safetensors import TensorEntry, TensorLayout, lay_out, read_header

# As mlx-lm: a shard holds whole tensors and is at most 5 GiB, unless one tensor alone is larger.
MAX_SHARD_BYTES = 5 * 2**30

_TYPE_NAMES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.uint32: "U32"}


class ShardWriter:
    """The weight files of one model. Memory use does not depend on their size: nothing is held back.

    Every file gets its header and its full length at once; the bytes of a tensor are then appended at its
    place, in as many pieces as the caller likes and in any order of tensors.
    """

    def __init__(self, folder: Path, tensors: Sequence[TensorLayout]) -> None:
        (name, count), *_ = Counter(tensor.name for tensor in tensors).most_common(1) or [("", 0)]
        if count > 1:
            raise ValueError(f"{name} is laid out twice")
        self._folder = folder
        self._files: list[BinaryIO] = []
        self._places: dict[str, tuple[BinaryIO, TensorEntry]] = {}
        self._filled: dict[str, int] = {tensor.name: 0 for tensor in tensors}
        self._shard_names: dict[str, str] = {}
        self.total_bytes = sum(tensor.size_bytes for tensor in tensors)
        shards = split_into_shards(tensors)
        try:
            for index, shard in enumerate(shards, start=1):
                name = f"model-{index:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
                self._begin_shard(name, shard)
        except BaseException:
            self._close(failed=True)
            raise

    def append(self, name: str, piece: mx.array) -> None:
        """Write the next bytes of a tensor.

        Raises:
            ValueError: they are of another type than the tensor, or too many.
        """
        file, entry = self._places[name]
        if _TYPE_NAMES.get(piece.dtype) != entry.dtype:
            raise ValueError(f"{name} is {entry.dtype} and was given {piece.dtype}")
        data = _raw_bytes(piece)
        begin = entry.start + self._filled[name]
        if begin + len(data) > entry.stop:
            raise ValueError(f"{name} was given more bytes than its shape {entry.shape} has")
        file.seek(begin)
        file.write(data)
        self._filled[name] += len(data)

    def finish(self, *, parameter_count: int) -> None:
        """Write the index, push everything to the disk and read the headers back.

        Raises:
            ValueError: a tensor was not filled.
        """
        for name, (_, entry) in self._places.items():
            if self._filled[name] != entry.size_bytes:
                raise ValueError(f"{name} has {self._filled[name]} of {entry.size_bytes} bytes")
        index = {
            "metadata": {"total_size": self.total_bytes, "total_parameters": parameter_count},
            "weight_map": dict(sorted(self._shard_names.items())),
        }
        (self._folder / INDEX_NAME).write_text(json.dumps(index, indent=4), encoding="utf-8")
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        for shard_name in dict.fromkeys(self._shard_names.values()):
            read_header(self._folder / shard_name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(failed=kind is not None)

    def _close(self, *, failed: bool) -> None:
        for file in self._files:
            try:
                file.close()
            except OSError:
                # Closing flushes, and on a full disk fails a second time: the first failure is the one to tell.
                if not failed:
                    raise

    def _begin_shard(self, name: str, tensors: Iterable[TensorLayout]) -> None:
        header, entries = lay_out(tensors, {"format": "mlx"})
        file = (self._folder / name).open("wb")
        self._files.append(file)
        file.write(header)
        file.truncate(max((entry.stop for entry in entries.values()), default=len(header)))
        for tensor_name, entry in entries.items():
            self._places[tensor_name] = (file, entry)
            self._shard_names[tensor_name] = name


def split_into_shards(
    tensors: Iterable[TensorLayout], max_shard_bytes: int = MAX_SHARD_BYTES
) -> list[list[TensorLayout]]:
    """Cut *tensors*, in their order, into shards of at most *max_shard_bytes* where a single tensor allows it."""
    shards: list[list[TensorLayout]] = []
    shard_bytes = 0
    for tensor in tensors:
        if not shards or shard_bytes + tensor.size_bytes > max_shard_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(tensor)
        shard_bytes += tensor.size_bytes
    return shards


def _raw_bytes(values: mx.array) -> memoryview:
    if values.dtype == mx.bfloat16:
        values = values.view(mx.uint16)
    return np.ascontiguousarray(np.array(values, copy=False)).reshape(-1).view(np.uint8).data
