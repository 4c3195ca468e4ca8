"""One model in the making: where its tensors go, what of it is on the disk, and how it is ended."""

import contextlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from r1mac.convert.blocks import rows_of
from r1mac.convert.calibrated_fit import CalibratedFit
from r1mac.convert.encode import Encoded, Form
from r1mac.convert.journal import PARTIAL_SUFFIX, RECORD_NAME, digest_file, plan_of, resume
from r1mac.convert.layout import OutputTensor, Piece, plan_layout
from r1mac.convert.recipe import Recipe, config_entry
from r1mac.convert.shard import partial_path, publish
from r1mac.convert.sources import Source
from r1mac.convert.writer import ShardWriter, name_shards
from r1mac.plan.memory import Quantization


class Destination:
    """A folder that becomes the model of *source* by *recipe*.

    Args:
        source: what it is made from.
        recipe: what becomes of each tensor.
        folder: exists; what an earlier run left there is used where it is of the same plan.
        max_shard_bytes: limit of one weight file.
        restart: use nothing that was left.
        fit: chooses scales and codes by the inputs that matrices meet; None rounds.

    Attributes:
        reasons: why something that was left is not used, in words; empty where nothing is lost.

    Raises:
        BadCheckpoint, BadRecipe: the source and the recipe make no model.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        folder: Path,
        *,
        max_shard_bytes: int,
        restart: bool,
        fit: CalibratedFit | None = None,
    ) -> None:
        self.recipe, self.folder, self._fit = recipe, folder, fit
        self.layout = plan_layout(source, recipe)
        self._tensors = {tensor.name: tensor for tensor in self.layout.tensors}
        self._parts = {tensor.name: tuple(tensor.stored()) for tensor in self.layout.tensors}
        self._max_shard_bytes = max_shard_bytes
        self._shards = name_shards(self.layout.stored(), max_shard_bytes, self.layout.prediction_names)
        self._shard_of = {part.name: name for name, parts in self._shards.items() for part in parts}
        self._last_names = {parts[-1].name for parts in self._shards.values()}
        plan = plan_of(source, recipe, self._shards)
        if fit is not None:
            plan = replace(plan, identity={**plan.identity, "the calibration": fit.identity})
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

    def form(self, piece: Piece, first_row: int) -> Form:
        """Return what rows of *piece*, from row *first_row* of its tensor on, are written as."""
        tensor = self._tensors[piece.tensor]
        path, width = tensor.name.removesuffix(".weight"), tensor.quantization
        if self._fit is None or width is None or not self._fit.can_fit(path, tensor.shape, width):
            return Form(tensor.dtype, width)
        return Form(
            tensor.dtype,
            width,
            partial(self._fit.quantize, path, tensor.shape, first_row, width, tensor.dtype),
        )

    def tensor(self, piece: Piece) -> OutputTensor:
        """Return the tensor that *piece* is of."""
        return self._tensors[piece.tensor]

    def open(self) -> None:
        """Clear the folder of what has no place in it, and begin to write: the journal first."""
        for name in self._journal.shards:
            publish(self.folder / name)  # a kill may have come between the journal's line and the name
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

    def write(self, piece: Piece, first_row: int, arrays: Encoded) -> None:
        """Write what was made of rows of *piece*, from row *first_row* of its tensor on."""
        tensor = self._tensors[piece.tensor]
        row_count = max(rows_of(tensor.shape), 1)
        for array, stored in zip(arrays, self._parts[piece.tensor], strict=True):
            if not self._is_whole(stored.name):
                self._open_writer.write(stored.name, first_row * (stored.size_bytes // row_count), array)

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
        self._open_writer.publish()

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
            for name in self._shards.keys() - kept - self._journal.shards.keys():
                partial_path(self.folder / name).unlink(missing_ok=True)
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
            sizes = map(_size_bytes, (self.folder / name, partial_path(self.folder / name)))
            if digest.size_bytes not in sizes:
                del self._journal.shards[name]
        for tensor in list(self._journal.pieces):
            missing = {self._shard_of[part.name] for part in self._parts[tensor]} - self._journal.shards.keys()
            if any(_size_bytes(partial_path(self.folder / name)) is None for name in missing):
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
