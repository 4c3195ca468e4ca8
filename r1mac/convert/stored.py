"""One tensor of a model as safetensors files hold it: plain here, quantised in the modules beside."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from r1mac.errors import BadCheckpoint
from r1mac.formats.safetensors import TensorEntry

# MLX has no float64 on a GPU; such values are read as float32.
VALUE_TYPES = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FLOAT_TYPES = tuple(VALUE_TYPES)
# macOS reads less than 2 GiB at a time.
_MOST_READ_BYTES = 2**30
_NUMPY_TYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # numpy has no bfloat16: the bits travel as integers
    "F8_E4M3": np.uint8,
    "F8_E8M0": np.uint8,
    "U8": np.uint8,
    "I8": np.int8,
    "U32": np.uint32,
    "I32": np.int32,
    "I64": np.int64,
}


class StoredTensor(Protocol):
    """A tensor whose rows can be read in ranges; what is quantised comes out dequantised."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, with scales."""
        ...

    @property
    def row_step(self) -> int:
        """Rows whose multiples may be asked for."""
        ...

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that ``rows`` reads."""
        ...

    @property
    def quantized_bits(self) -> int | None:
        """Width of a code where values were lost to a few levels, else None."""
        ...

    @property
    def value_type(self) -> str:
        """The MLX type that ``rows`` gives."""
        ...

    def rows(self, start: int, stop: int) -> mx.array:
        """Return rows *start* to *stop* along the first axis (of a scalar: 0 to 1, the value)."""
        ...


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor whose bytes are its values. Nothing is opened before ``rows``: the file may come later."""

    path: Path
    entry: TensorEntry

    row_step = 1
    quantized_bits = None

    @property
    def name(self) -> str:
        """The tensor's name in its file."""
        return self.entry.name

    @property
    def dtype(self) -> str:
        """The type as safetensors calls it."""
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return self.entry.shape

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return self.entry.size_bytes

    @property
    def files(self) -> tuple[str, ...]:
        """Name of the file that ``rows`` reads."""
        return (self.path.name,)

    @property
    def value_type(self) -> str:
        """The MLX type that ``rows`` gives."""
        return VALUE_TYPES.get(self.dtype, "uint8")

    def rows(self, start: int, stop: int) -> mx.array:
        """Return rows *start* to *stop*, read from the disk.

        Raises:
            BadCheckpoint: the file cannot be read, or became shorter.
        """
        values = mx.array(self.numpy_rows(start, stop))
        return values.view(mx.bfloat16) if self.dtype == "BF16" else values

    def numpy_rows(self, start: int, stop: int) -> "np.ndarray[Any, Any]":
        """Return rows as numpy has them: bfloat16 and the 8-bit types as unsigned integers."""
        numpy_type, shape = np.dtype(_NUMPY_TYPES[self.dtype]), self.entry.shape
        assert 0 <= start <= stop <= (shape[0] if shape else 1)
        row_values = 1
        for length in shape[1:]:
            row_values *= length
        count, offset = (stop - start) * row_values, self.entry.start + start * row_values * numpy_type.itemsize
        raw = np.empty(count, numpy_type)
        try:
            filled = _read_into(raw.view(np.uint8), self.path, offset)
        except OSError as error:
            raise BadCheckpoint(
                f"cannot read {self.path}: {error.strerror}", hint="check the file and its disk"
            ) from error
        if not filled:
            raise BadCheckpoint(
                f"{self.path.name} became shorter while it was read", hint="do not change it during a conversion"
            )
        return raw.reshape((stop - start, *shape[1:]) if shape else ())


def _read_into(octets: "np.ndarray[Any, Any]", path: Path, offset: int) -> bool:
    """Fill *octets* from *offset* of a file, in a third of ``np.fromfile``'s time; tell whether it was long enough.

    Raises:
        OSError: it cannot be read.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        os.lseek(file, offset, os.SEEK_SET)
        left = octets.data
        while left:
            count = os.readv(file, [left[:_MOST_READ_BYTES]])
            if not count:
                return False
            left = left[count:]
    finally:
        os.close(file)
    return True


def require_shape(tensor: RawTensor, types: tuple[str, ...], shape: tuple[int, ...], *, of: str) -> None:
    """Refuse a scale (or the like) of another type or shape than the tensor *of* needs.

    Raises:
        BadCheckpoint: naming both tensors.
    """
    if tensor.shape != shape or tensor.dtype not in types:
        raise BadCheckpoint(
            f"{tensor.name} is {tensor.dtype} {list(tensor.shape)}, and {of} needs {' or '.join(types)} {list(shape)}",
            hint="fetch the checkpoint again",
        )


def whole(tensor: RawTensor) -> mx.array:
    """Return all values of a small tensor as float32."""
    return tensor.rows(0, tensor.shape[0] if tensor.shape else 1).astype(mx.float32)


def distinct(*parts: RawTensor | None) -> tuple[str, ...]:
    """Return the files of several parts of one tensor, each once."""
    return tuple(dict.fromkeys(file for part in parts if part is not None for file in part.files))
