"""A source and a recipe become an MLX model's folder, a block of rows at a time."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from r1mac.convert.layout import OutputTensor, plan_layout
from r1mac.convert.names import Sourcing
from r1mac.convert.recipe import Recipe
from r1mac.convert.sources import Source
from r1mac.convert.writer import ShardWriter
from r1mac.errors import FREE_SOME_SPACE, BadCheckpoint, DiskFull, writing_to
from r1mac.units import format_size

logger = logging.getLogger(__name__)

# Weights read at once. Larger blocks are no faster; smaller ones cost more calls than they save memory.
_BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionStarted:
    """The first event: what is going to be written."""

    total_bytes: int
    output_bytes: int
    unquantized_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorWritten:
    """A tensor is complete. *done_bytes* counts the source's bytes."""

    name: str
    done_bytes: int
    total_bytes: int


ConvertEvent = ConversionStarted | TensorWritten


def convert(
    source: Source, recipe: Recipe, into: Path, *, free_disk_bytes: int | None = None
) -> Iterator[ConvertEvent]:
    """Write the MLX model of *source* into the empty folder *into*.

    Peak memory is a few blocks of rows: it depends neither on the model's size nor on the largest tensor.
    The caller gives the folder its name when this has ended; until then it is no model. Where
    *free_disk_bytes* is given, nothing is written unless the result and one percent more have room.

    Raises:
        BadCheckpoint: a tensor is missing, too many, of the wrong shape, or not finite.
        BadRecipe: the recipe cannot be applied to this model.
        DiskFull, NotWritable: as they say.
    """
    layout = plan_layout(source, recipe)
    needed_bytes = layout.output_bytes + layout.output_bytes // 100
    if free_disk_bytes is not None and free_disk_bytes < needed_bytes:
        raise DiskFull(
            f"the converted model needs {format_size(needed_bytes)} on the disk of {into.parent}, which has "
            f"{format_size(free_disk_bytes)} free",
            hint=f"{FREE_SOME_SPACE}, or use fewer --bits",
        )
    source_bytes = {tensor.name: sum(map(source.size_bytes, tensor.sourcing.names)) for tensor in layout.tensors}
    total_bytes, done_bytes = sum(source_bytes.values()), 0
    logger.info("converting %s: %d tensors", source.description, len(layout.tensors))
    with writing_to(into, needed_bytes=layout.output_bytes), ShardWriter(into, layout.stored()) as writer:
        yield ConversionStarted(
            total_bytes=total_bytes, output_bytes=layout.output_bytes, unquantized_names=layout.unquantized_names
        )
        for tensor in layout.tensors:
            _write_tensor(source, tensor, writer)
            done_bytes += source_bytes[tensor.name]
            yield TensorWritten(name=tensor.name, done_bytes=done_bytes, total_bytes=total_bytes)
        writer.finish(parameter_count=layout.parameter_count)
        source.write_companions(into)
        config = converted_config(source.config, recipe)
        (into / "config.json").write_text(json.dumps(config, indent=4), encoding="utf-8")


def converted_config(config: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return the config.json of the converted model, as ``mlx_lm.convert`` would write it."""
    result = {
        key: value for key, value in config.items() if key not in {"_name_or_path", "quantization_config", "auto_map"}
    }
    if recipe.dtype is not None and "torch_dtype" in result:
        result["torch_dtype"] = recipe.dtype
    if recipe.quantizes:
        quantization = {"group_size": recipe.default.group_size, "bits": recipe.default.bits, "mode": "affine"}
        result["quantization"] = quantization
        result["quantization_config"] = quantization
    return dict(sorted(result.items()))


def _write_tensor(source: Source, tensor: OutputTensor, writer: ShardWriter) -> None:
    for piece in _pieces(source, tensor.sourcing, tensor):
        values = piece.astype(tensor.dtype)
        if not mx.all(mx.isfinite(values)).item():
            raise BadCheckpoint(
                f"{tensor.sourcing.names[0]} holds values that are not finite in {_type_name(tensor.dtype)}",
                hint="the checkpoint is damaged, or needs --dtype bfloat16",
            )
        if tensor.quantization is None:
            writer.append(tensor.name, values)
            continue
        codes, scales, biases = mx.quantize(
            values, group_size=tensor.quantization.group_size, bits=tensor.quantization.bits
        )
        module = tensor.name.removesuffix(".weight")
        for suffix, part in (("weight", codes), ("scales", scales), ("biases", biases)):
            writer.append(f"{module}.{suffix}", part)
    # Buffers are of every size here, and keeping them for the next tensor would look like a leak.
    mx.clear_cache()


def _pieces(source: Source, sourcing: Sourcing, tensor: OutputTensor) -> Iterator[mx.array]:
    """Yield the tensor's values in order, in blocks of rows (of each expert in turn)."""
    match sourcing.kind:
        case "same" | "stack":
            for name in sourcing.names:
                yield from _row_blocks(source, name)
        case "keys" | "values":
            (name,) = sourcing.names
            yield _latent_half(source, name, tensor, keys=sourcing.kind == "keys")


def _row_blocks(source: Source, name: str) -> Iterator[mx.array]:
    shape = source.shapes()[name]
    if not shape:
        yield source.rows(name, 0, 1)
        return
    row_count, step = shape[0], source.row_step(name)
    # Sized as float32, the widest that a block becomes on its way.
    row_bytes = 4
    for length in shape[1:]:
        row_bytes *= length
    block_rows = max(_BLOCK_BYTES // row_bytes // step, 1) * step
    for start in range(0, row_count, block_rows):
        yield source.rows(name, start, min(start + block_rows, row_count))


def _latent_half(source: Source, name: str, tensor: OutputTensor, *, keys: bool) -> mx.array:
    """Return MLA's ``embed_q`` or ``unembed_out`` ``[heads, rows, columns]`` from ``kv_b_proj``.

    ``kv_b_proj`` is ``[heads x (nope + value), rank]``: each head's keys, then its values. The keys are
    wanted transposed, ``[heads, rank, nope]``.
    """
    rows, rank = source.shapes()[name]
    heads = tensor.shape[0]
    per_head = source.rows(name, 0, rows).reshape(heads, rows // heads, rank)
    if keys:
        nope = tensor.shape[2]
        return mx.contiguous(per_head[:, :nope, :].swapaxes(-1, -2))
    return mx.contiguous(per_head[:, per_head.shape[1] - tensor.shape[1] :, :])


def _type_name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]
