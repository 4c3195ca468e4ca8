"""safetensors: headers read and checked, and files laid out before their bytes are known.

A file is an 8-byte little-endian length, a JSON header of that length, then the tensors' bytes.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from r1mac.errors import BadCheckpoint

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}

# The format's own limit; a longer header is damage or an attack.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: *start* and *stop* are byte offsets from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.stop - self.start


def read_header(path: Path, *, header_only: bool = False) -> dict[str, TensorEntry]:
    """Return the tensors of a safetensors file by name, having checked that all their bytes are there.

    Where *header_only*, *path* holds a file's header and none of its tensors' bytes.

    Raises:
        BadCheckpoint: the file is truncated, or its header is not what the format says.
    """
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if file_bytes < 8 or length > min(file_bytes - 8, _MAX_HEADER_BYTES):  # noqa: PLR2004
                raise _damaged(path, f"its header would be {length} bytes in a file of {file_bytes}")
            header = json.loads(file.read(length), object_pairs_hook=_unique)
    except FileNotFoundError as error:
        raise _damaged(path, "it is missing") from error
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not an object")
    header.pop("__metadata__", None)
    entries = {name: _parse_entry(path, name, fields, 8 + length) for name, fields in header.items()}
    end = max((entry.stop for entry in entries.values()), default=8 + length)
    _check_layout(path, entries.values(), 8 + length, end if header_only else file_bytes)
    return entries


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """A tensor that is going to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


def lay_out(tensors: Iterable[TensorLayout], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, TensorEntry]]:
    """Return a file's header and where each tensor's bytes go.

    Tensors are placed by falling element size, so that each begins at a multiple of its own; those of one size
    in the order in which they are given.

    Raises:
        ValueError: two tensors have one name.
    """
    ordered = sorted(tensors, key=lambda tensor: -DTYPE_BYTES[tensor.dtype])
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for tensor in ordered:
        if tensor.name in header:
            raise ValueError(f"{tensor.name} is laid out twice")
        stop = offset + tensor.size_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    entries, offset = {}, begin
    for tensor in ordered:
        entries[tensor.name] = TensorEntry(tensor.name, tensor.dtype, tensor.shape, offset, offset + tensor.size_bytes)
        offset += tensor.size_bytes
    return len(text).to_bytes(8, "little") + text, entries


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _parse_entry(path: Path, name: str, fields: object, begin: int) -> TensorEntry:
    try:
        dtype, shape, (start, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]  # type: ignore[index]
        # type() and not isinstance(): True would pass for 1.
        valid = isinstance(shape, list) and all(type(number) is int and number >= 0 for number in (*shape, start, stop))
        size_bytes = prod(shape) * DTYPE_BYTES[dtype]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"the header's entry for {name} makes no sense ({error!r})") from error
    if not valid or stop - start != size_bytes:
        raise _damaged(path, f"{name} is {dtype} {shape} but has bytes {start} to {stop}")
    return TensorEntry(name, dtype, tuple(shape), begin + start, begin + stop)


def _check_layout(path: Path, entries: Iterable[TensorEntry], begin: int, file_bytes: int) -> None:
    end = begin
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        if entry.start != end:
            raise _damaged(path, f"{entry.name} overlaps another tensor or leaves a gap")
        end = entry.stop
    if end > file_bytes:
        raise _damaged(path, f"it has {file_bytes} bytes and should have {end}: it is truncated")
    if end < file_bytes:
        raise _damaged(path, f"it has {file_bytes - end} bytes too many")


def _damaged(path: Path, why: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path.name} is damaged: {why}",
        hint=f"fetch or copy it again; it lies in {path.parent}",
    )
