"""An MLX model's weight files, laid out first and filled as the tensors come."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import mlx.core as mx
import numpy as np

from r1mac.convert.blocks import Array, as_numpy
from r1mac.convert.journal import FileDigest
from r1mac.convert.shard import Shard, publish
from r1mac.durable import folder_to_disk
from r1mac.formats.folder import INDEX_NAME, PREDICTION_STEM
from r1mac.formats.safetensors import TensorLayout

# As mlx-lm: a shard holds whole tensors and is at most 5 GiB, unless one tensor alone is larger.
MAX_SHARD_BYTES = 5 * 2**30

# As numpy has them (``blocks.as_numpy``).
_NUMPY_TYPES = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "U32": np.uint32, "U8": np.uint8}


class ShardWriter:
    """The weight files of one model. Memory use does not depend on their size: nothing is held back.

    Args:
        folder: where they go.
        tensors: all of the model's, in its order.
        max_shard_bytes: limit of one file.
        finished: names of files that are whole already.
        kept_bytes: of tensors in other files, the bytes that are on the disk already.
        apart: names of tensors that go into files of their own, which no index names.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Sequence[TensorLayout],
        *,
        max_shard_bytes: int = MAX_SHARD_BYTES,
        finished: Iterable[str] = (),
        kept_bytes: Mapping[str, int] | None = None,
        apart: Collection[str] = (),
    ) -> None:
        (name, count), *_ = Counter(tensor.name for tensor in tensors).most_common(1) or [("", 0)]
        if count > 1:
            raise ValueError(f"{name} is laid out twice")
        kept_bytes = kept_bytes or {}
        done = set(finished)
        self._folder = folder
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checksum")
        self._shards: dict[str, Shard] = {}
        self._sealed: set[str] = set()
        self.shard_of: dict[str, str] = {}
        self._types = {tensor.name: tensor.dtype for tensor in tensors}
        self._given: dict[str, int] = {}
        self._apart = apart
        self.total_bytes = sum(tensor.size_bytes for tensor in tensors if tensor.name not in apart)
        for shard_name, shard in name_shards(tensors, max_shard_bytes, apart).items():
            self.shard_of |= {tensor.name: shard_name for tensor in shard}
            if shard_name not in done:
                kept = {tensor.name: kept_bytes[tensor.name] for tensor in shard if tensor.name in kept_bytes}
                self._shards[shard_name] = Shard(folder / shard_name, shard, kept, self._executor)

    @property
    def missing_bytes(self) -> int:
        """Bytes of the files that are not whole yet."""
        return sum(shard.size_bytes for shard in self._shards.values())

    def append(self, name: str, piece: mx.array) -> None:
        """Write the next bytes of a tensor that comes in order.

        Raises:
            ValueError: they are of another type than the tensor, or too many.
        """
        offset = self._given.get(name, 0)
        self.write(name, offset, as_numpy(piece))
        self._given[name] = offset + piece.nbytes

    def is_whole(self, name: str) -> bool:
        """Tell whether the file that holds the tensor *name* is whole."""
        return self.shard_of[name] not in self._shards

    def write(self, name: str, offset: int, values: Array) -> None:
        """Write values of a tensor, as :func:`blocks.as_numpy` has them, *offset* bytes from the tensor's beginning.

        Raises:
            ValueError: they are of another type than the tensor, or more than it has.
        """
        if values.dtype != _NUMPY_TYPES[self._types[name]]:
            raise ValueError(f"{name} is {self._types[name]} and was given {values.dtype}")
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        if self.is_whole(name):
            raise ValueError(f"{name} was given more bytes than it has: its file is whole")
        self._shards[self.shard_of[name]].write(name, offset, data)

    def commit(self) -> dict[str, FileDigest]:
        """Bring all that was written to the disk, and return the files that have become whole by it.

        They get their names by :meth:`publish`, once it is written down that they are whole.
        """
        done: dict[str, FileDigest] = {}
        for name, shard in list(self._shards.items()):
            if shard.missing() is None:
                done[name] = shard.seal()
                del self._shards[name]
            else:
                shard.settle()
        self._sealed |= done.keys()
        folder_to_disk(self._folder)
        return done

    def publish(self) -> None:
        """Give the files that :meth:`commit` found whole their names."""
        if self._sealed:
            for name in sorted(self._sealed):
                publish(self._folder / name)
            self._sealed.clear()
            folder_to_disk(self._folder)

    def finish(self, *, parameter_count: int) -> dict[str, FileDigest]:
        """Commit and publish, write the index, and return the files that were not whole before.

        Raises:
            ValueError: a tensor was not filled.
        """
        for shard in self._shards.values():
            if (missing := shard.missing()) is not None:
                raise ValueError(missing)
        done = self.commit()
        self.publish()
        index = {
            "metadata": {"total_size": self.total_bytes, "total_parameters": parameter_count},
            "weight_map": {name: file for name, file in sorted(self.shard_of.items()) if name not in self._apart},
        }
        (self._folder / INDEX_NAME).write_text(json.dumps(index, indent=4), encoding="utf-8")
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shard in self._shards.values():
            shard.close()
        self._executor.shutdown(wait=True, cancel_futures=True)


def name_shards(
    tensors: Sequence[TensorLayout], max_shard_bytes: int, apart: Collection[str] = ()
) -> dict[str, list[TensorLayout]]:
    """Return the weight files of a model by name, with what each holds; those of *apart* are no part of the model."""
    own = split_into_shards((tensor for tensor in tensors if tensor.name not in apart), max_shard_bytes)
    other = split_into_shards((tensor for tensor in tensors if tensor.name in apart), max_shard_bytes)
    return _named("model", own) | _named(PREDICTION_STEM, other)


def _named(stem: str, shards: list[list[TensorLayout]]) -> dict[str, list[TensorLayout]]:
    if len(shards) == 1:
        return {f"{stem}.safetensors": shards[0]}
    return {f"{stem}-{index:05}-of-{len(shards):05}.safetensors": shard for index, shard in enumerate(shards, start=1)}


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
