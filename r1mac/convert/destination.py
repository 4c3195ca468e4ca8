"""One model in the making: where its tensors go, what of it is on the disk, and how it is ended."""

import contextlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from r1mac.convert.blocks import Block, rows_of
from r1mac.convert.journal import PARTIAL_SUFFIX, RECORD_NAME, digest_file, plan_of, resume
from r1mac.convert.layout import OutputTensor, Piece, plan_layout
from r1mac.convert.recipe import Recipe, config_entry
from r1mac.convert.sources import Source
from r1mac.convert.writer import ShardWriter, name_shards, raw_view
from r1mac.plan.memory import Quantization


class Part(NamedTuple):
    """Values on their way into a file: they go *offset* bytes behind the beginning of the tensor *name*."""

    name: str
    offset: int
    values: mx.array


class Destination:
    """A folder that becomes the model of *source* by *recipe*.

    Args:
        source: what it is made from.
        recipe: what becomes of each tensor.
        folder: exists; what an earlier run left there is used where it is of the same plan.
        max_shard_bytes: limit of one weight file.
        restart: use nothing that was left.

    Attributes:
        reasons: why something that was left is not used, in words; empty where nothing is lost.

    Raises:
        BadCheckpoint, BadRecipe: the source and the recipe make no model.
    """

    def __init__(self, source: Source, recipe: Recipe, folder: Path, *, max_shard_bytes: int, restart: bool) -> None:
        self.recipe, self.folder = recipe, folder
        self.layout = plan_layout(source, recipe)
        self._tensors = {tensor.name: tensor for tensor in self.layout.tensors}
        self._parts = {tensor.name: tuple(tensor.stored()) for tensor in self.layout.tensors}
        self._max_shard_bytes = max_shard_bytes
        self._shards = name_shards(self.layout.stored(), max_shard_bytes, self.layout.prediction_names)
        self._shard_of = {part.name: name for name, parts in self._shards.items() for part in parts}
        self._last_names = {parts[-1].name for parts in self._shards.values()}
        plan = plan_of(source, recipe, self._shards)
        self._journal, self.reasons = resume(folder, plan, restart=restart)
        self._forget_what_is_lost()
        self._done = {Piece(name, number) for name, numbers in self._journal.pieces.items() for number in numbers}
        self._writer: ShardWriter | None = None

    @property
    def shard_count(self) -> int:
        """Weight files that the model has in the end."""
        return len(self._shards)

    @property
    def whole_count(self) -> int:
        """Weight files that are whole."""
        return len(self._journal.shards)

    @property
    def missing_bytes(self) -> int:
        """Bytes of tensors that are still to be written."""
        missing = self._shards.keys() - self._journal.shards.keys()
        missing_bytes = sum(part.size_bytes for name in missing for part in self._shards[name])
        return missing_bytes - sum(
            bytes_of for name, bytes_of in self._kept_bytes().items() if self._shard_of[name] in missing
        )

    def is_done(self, piece: Piece) -> bool:
        """Tell whether *piece* is on the disk for good."""
        return piece in self._done or all(self._is_whole(part.name) for part in self._parts[piece.tensor])

    def ends_shard(self, piece: Piece) -> bool:
        """Tell whether *piece* brings the last bytes of a weight file, where pieces come in the model's order."""
        tensor = self._tensors[piece.tensor]
        is_last = piece.number == len(tensor.sourcing.names) - 1
        return is_last and any(part.name in self._last_names for part in self._parts[piece.tensor])

    def tensor(self, piece: Piece) -> OutputTensor:
        """Return the tensor that *piece* is of."""
        return self._tensors[piece.tensor]

    def open(self) -> None:
        """Clear the folder of what has no place in it, and begin to write: the journal first."""
        self._remove_strangers()
        self._journal.save(self.folder)
        self._writer = ShardWriter(
            self.folder,
            self.layout.stored(),
            max_shard_bytes=self._max_shard_bytes,
            finished=self._journal.shards,
            kept_bytes=self._kept_bytes(),
            apart=self.layout.prediction_names,
        )

    def parts(self, piece: Piece, block: Block, values: mx.array) -> Iterator[Part]:
        """Yield what to write of *values*, a block of *piece* in the tensor's type; nothing is computed yet."""
        tensor = self._tensors[piece.tensor]
        row_count, width = max(rows_of(tensor.shape), 1), tensor.quantization
        made: Iterable[mx.array] = (values,)
        if width is not None:
            # The floating-point modes have no biases.
            made = mx.quantize(values, group_size=width.group_size, bits=width.bits, mode=width.mode)
        for part, stored in zip(made, self._parts[piece.tensor], strict=True):
            if not self._is_whole(stored.name):
                offset = block.first_row * (stored.size_bytes // row_count)
                yield Part(stored.name, offset, raw_view(self._open_writer.checked(stored.name, part)))

    def write(self, part: Part) -> None:
        """Write what :meth:`parts` gave and MLX has computed."""
        self._open_writer.write(part.name, part.offset, part.values)

    def commit(self, made: Iterable[Piece]) -> None:
        """Bring what was written to the disk, and put into the journal that the pieces *made* are there."""
        self._journal.shards.update(self._open_writer.commit())
        self._done |= set(made)
        self._done = {
            piece for piece in self._done if not all(self._is_whole(p.name) for p in self._parts[piece.tensor])
        }
        self._journal.pieces.clear()
        for piece in sorted(self._done):
            self._journal.pieces.setdefault(piece.tensor, []).append(piece.number)
        self._journal.save(self.folder)

    def finish(self, source: Source) -> None:
        """Write what a model has beside its weights, and the checksums of all that into the record."""
        self._open_writer.finish(parameter_count=self.layout.parameter_count)
        source.write_companions(self.folder)
        config = converted_config(source.config, self.recipe, self.layout.widths)
        (self.folder / "config.json").write_text(json.dumps(config, indent=4), encoding="utf-8")
        for path in sorted(self.folder.iterdir()):
            if path.is_file() and not path.name.startswith(".") and path.name not in {RECORD_NAME, *self._shards}:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                self._journal.files[path.name] = digest_file(path)
        self._journal.save(self.folder)

    def close(self, *, failed: bool) -> None:
        """Let go of the files; after a failure leave what can be gone on with, and nothing else."""
        if self._writer is None:
            return
        self._writer.__exit__(None, None, None)
        if not failed:
            return
        kept = {self._shard_of[part.name] for piece in self._done for part in self._parts[piece.tensor]}
        with contextlib.suppress(OSError):
            for name in self._shards.keys() - kept:
                (self.folder / (name + PARTIAL_SUFFIX)).unlink(missing_ok=True)
            if not self._journal.shards and not self._done:
                self._remove_strangers()
                (self.folder / RECORD_NAME).unlink(missing_ok=True)

    @property
    def _open_writer(self) -> ShardWriter:
        assert self._writer is not None, "open() comes first"
        return self._writer

    def _kept_bytes(self) -> dict[str, int]:
        """Return what is on the disk of tensors that are not whole, by their names in the files."""
        kept: dict[str, int] = defaultdict(int)
        for piece in self._done:
            for part in self._parts[piece.tensor]:
                kept[part.name] += part.size_bytes // len(self._tensors[piece.tensor].sourcing.names)
        return kept

    def _is_whole(self, name: str) -> bool:
        return self._shard_of[name] in self._journal.shards

    def _forget_what_is_lost(self) -> None:
        """Take out of the journal what is not on the disk in its size: somebody deleted it."""
        for name, digest in list(self._journal.shards.items()):
            if _size_bytes(self.folder / name) != digest.size_bytes:
                del self._journal.shards[name]
        for tensor in list(self._journal.pieces):
            missing = {self._shard_of[part.name] for part in self._parts[tensor]} - self._journal.shards.keys()
            if any(_size_bytes(self.folder / (name + PARTIAL_SUFFIX)) is None for name in missing):
                del self._journal.pieces[tensor]
        if self._journal.files:
            self._journal.files.clear()

    def _remove_strangers(self) -> None:
        """Delete what an earlier run left and this one does not go on with; hidden files are not the converter's."""
        kept = {
            self._shard_of[part.name] + PARTIAL_SUFFIX for piece in self._done for part in self._parts[piece.tensor]
        }
        for path in self.folder.iterdir():
            if path.name.startswith(".") or path.name in {RECORD_NAME, *self._journal.shards} | kept:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def converted_config(
    config: dict[str, Any], recipe: Recipe, widths: Mapping[str, Quantization | None]
) -> dict[str, Any]:
    """Return the config.json of the converted model, as ``mlx_lm.convert`` would write it."""
    result = {
        key: value for key, value in config.items() if key not in {"_name_or_path", "quantization_config", "auto_map"}
    }
    if recipe.dtype is not None and "torch_dtype" in result:
        result["torch_dtype"] = recipe.dtype
    if (quantization := config_entry(recipe, widths)) is not None:
        result["quantization"] = quantization
        result["quantization_config"] = quantization
    return dict(sorted(result.items()))


def _size_bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
