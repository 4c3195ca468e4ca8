"""A block of a prompt cache as a file: named after what it holds, and checked before it is believed.

A conversation's cache is a chain of blocks. A block's name is a digest of the model, of the cache's width and type,
and of all tokens up to its end, so that conversations which begin alike share their first blocks.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from r1mac.errors import BadCheckpoint
from r1mac.formats.safetensors import TensorEntry, TensorLayout, lay_out, read_header

SUFFIX = ".safetensors"
# A file that is being written; its process may be gone.
UNFINISHED_SUFFIX = ".new"
# Raised when the same tokens of the same model would be stored otherwise, or computed otherwise.
_FORMAT = 1
_DIGEST_CHARS = 40
_PARENT_CHARS = 16


class BlockTensor(NamedTuple):
    """One array's bytes. *dtype* is safetensors' name of the type."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some tokens and what every layer holds of them.

    Attributes:
        parent: digest of all that comes before them.
        token_ids: the tokens.
        tensors: the cache by name, such as ``3.keys.codes``.
    """

    parent: str
    token_ids: tuple[int, ...]
    tensors: Mapping[str, BlockTensor]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.data.nbytes for tensor in self.tensors.values())


def chain_root(model: str, computing: str, kv_bits: int) -> str:
    """Return the digest with which every chain begins.

    Args:
        model: fingerprint of the model.
        computing: the type in which it computes.
        kv_bits: width of its cache.
    """
    text = f"r1mac prompt cache {_FORMAT}\0{model}\0{computing}\0{kv_bits}"
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARS]


def next_digest(parent: str, token_ids: Sequence[int]) -> str:
    """Return the digest of a chain that ends with *token_ids*."""
    digest = hashlib.sha256(parent.encode())
    digest.update(b"".join(token_id.to_bytes(4, "little") for token_id in token_ids))
    return digest.hexdigest()[:_DIGEST_CHARS]


def block_name(parent: str, token_ids: Sequence[int]) -> str:
    """Return a block's file name; those that begin with the same ``name_prefix`` follow the same block."""
    return f"{name_prefix(parent)}{next_digest(parent, token_ids)}{SUFFIX}"


def name_prefix(parent: str) -> str:
    """Return how the names of all blocks after *parent* begin."""
    return f"{parent[:_PARENT_CHARS]}-"


def write_block(folder: Path, block: Block) -> int:
    """Write *block* into *folder*, whole or not at all, and return the file's bytes.

    It is not waited for the disk: a file that a power cut damaged is noticed when it is read.

    Raises:
        OSError: that is not possible.
    """
    path = folder / block_name(block.parent, block.token_ids)
    layout = [TensorLayout(name, tensor.dtype, tensor.shape) for name, tensor in block.tensors.items()]
    _, entries = lay_out(layout, {})
    checksum = _description(block.parent, block.token_ids, entries.values())
    for name in entries:
        checksum.update(block.tensors[name].data)
    metadata = {
        "format": str(_FORMAT),
        "parent": block.parent,
        "token_ids": ",".join(map(str, block.token_ids)),
        "sha256": checksum.hexdigest(),
    }
    header, entries = lay_out(layout, metadata)
    unfinished = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{UNFINISHED_SUFFIX}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(header)
            for name in entries:
                file.write(block.tensors[name].data)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    return len(header) + block.size_bytes


def read_block(path: Path) -> Block:
    """Return the block in *path*, with every byte checked.

    Raises:
        BadCheckpoint: it is damaged, or not the block of that name.
        OSError: it cannot be read, or is not there.
    """
    raw = memoryview(path.read_bytes())
    begin = 8 + int.from_bytes(raw[:8], "little")
    metadata = _metadata(path, raw[8:begin])
    entries = sorted(read_header(path).values(), key=lambda entry: entry.start)
    parent, token_ids = metadata["parent"], _token_ids(path, metadata)
    checksum = _description(parent, token_ids, entries)
    checksum.update(raw[begin:])
    if checksum.hexdigest() != metadata["sha256"]:
        raise BadCheckpoint(f"{path.name} is damaged: its checksum is another")
    if path.name != block_name(parent, token_ids):
        raise BadCheckpoint(f"{path.name} holds a block that has another name")
    tensors = {entry.name: BlockTensor(entry.dtype, entry.shape, raw[entry.start : entry.stop]) for entry in entries}
    return Block(parent=parent, token_ids=token_ids, tensors=tensors)


def read_token_ids(path: Path) -> tuple[int, ...]:
    """Return the tokens of the block in *path*, of which nothing else is read or checked.

    Raises:
        BadCheckpoint: that is not how a block begins.
        OSError: it cannot be read, or is not there.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        return _token_ids(path, _metadata(path, file.read(min(length, size))))


def _description(parent: str, token_ids: Sequence[int], entries: Iterable[TensorEntry]) -> "hashlib._Hash":
    """Return a digest of all that a block's header says, to which its bytes are to be added."""
    shapes = [[entry.name, entry.dtype, list(entry.shape)] for entry in entries]
    return hashlib.sha256(json.dumps([parent, list(token_ids), shapes]).encode())


def _metadata(path: Path, header: "bytes | memoryview") -> dict[str, str]:
    try:
        metadata = json.loads(bytes(header))["__metadata__"]
        wanted = {name: metadata[name] for name in ("format", "parent", "token_ids", "sha256")}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BadCheckpoint(f"{path.name} is damaged: it does not begin as a block does") from error
    if not all(isinstance(value, str) for value in wanted.values()) or wanted["format"] != str(_FORMAT):
        raise BadCheckpoint(f"{path.name} is not a block of format {_FORMAT}")
    return wanted


def _token_ids(path: Path, metadata: Mapping[str, str]) -> tuple[int, ...]:
    try:
        token_ids = tuple(map(int, metadata["token_ids"].split(",")))
    except ValueError as error:
        raise BadCheckpoint(f"{path.name} is damaged: its tokens are no numbers") from error
    if min(token_ids) < 0 or max(token_ids) >= 2**32:
        raise BadCheckpoint(f"{path.name} is damaged: its tokens are out of range")
    return token_ids
