"""GGUF files, read by ggml-org's own library; its many ways to fail on a damaged file become one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1mac.errors import BadCheckpoint

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor of a GGUF file.

    Attributes:
        shape: row-major, as numpy and MLX have it (GGUF stores it the other way round).
        type_name: ggml's name of its format, such as ``"Q4_K"``.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    _reader_tensor: Any

    def rows(self, start: int, stop: int) -> "npt.NDArray[np.float32]":
        """Return rows *start* to *stop* (of a vector: values) dequantised, as float32 ``[rows, columns]``.

        Raises:
            BadCheckpoint: the format is one that cannot be dequantised.
        """
        import numpy as np
        from gguf.quants import dequantize

        tensor = self._reader_tensor
        try:
            # What is not finite is for the caller to judge, and no reason for a warning in the margin.
            with np.errstate(all="ignore"):
                if len(self.shape) == 1:
                    return dequantize(tensor.data, tensor.tensor_type)[start:stop]  # type: ignore[no-any-return]
                return dequantize(tensor.data[start:stop], tensor.tensor_type)  # type: ignore[no-any-return]
        except NotImplementedError as error:
            raise BadCheckpoint(
                f"{self.name} is {self.type_name}, which the gguf library does not dequantise",
                hint="convert the original weights instead",
            ) from error


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A GGUF file's metadata and tensors by name. The file stays mapped while this lives."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]

    @property
    def architecture(self) -> str:
        """Ggml's name of the architecture, such as ``"llama"`` or ``"qwen2"``."""
        return str(self.metadata.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """Return the architecture's own field, such as ``block_count`` for ``llama.block_count``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def required(self, key: str, kind: type = int) -> Any:
        """Return the architecture's own field, a positive number.

        Raises:
            BadCheckpoint: it is missing, or is none.
        """
        value = self.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
            raise BadCheckpoint(
                f"{self.path.name} has no usable {self.architecture}.{key} (found {value!r})",
                hint="fetch the file again, or convert the original weights",
            )
        return kind(value)


def read_gguf(path: Path) -> GGUFFile:
    """Open a GGUF file and read its metadata.

    Raises:
        BadCheckpoint: the file is missing, truncated, or not GGUF.
    """
    from r1mac.formats.gguf_reader import open_reader

    with _damage_named(path):
        reader = open_reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: _tensor(tensor) for tensor in reader.tensors}
    return GGUFFile(path, metadata, tensors)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    hint = f"fetch or copy it again; it lies in {path.parent}"
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise BadCheckpoint(f"{path.name} is not a GGUF file: it begins with {magic!r}", hint=hint)
        yield
    except FileNotFoundError as error:
        raise BadCheckpoint(f"there is no file {path}", hint="check the path") from error
    # The reader indexes and reshapes a memory map, so damage shows as whatever numpy says first.
    except (ValueError, LookupError, TypeError, ArithmeticError, MemoryError, RuntimeError) as error:
        raise BadCheckpoint(
            f"{path.name} is truncated or damaged: its {path.stat().st_size} bytes do not hold what its header says",
            hint=hint,
        ) from error


def _tensor(tensor: Any) -> GGUFTensor:
    shape = tuple(int(length) for length in reversed(tensor.shape.tolist()))
    if 0 in shape:
        raise ValueError(f"{tensor.name} has the shape {shape}, which holds nothing")
    return GGUFTensor(tensor.name, shape, tensor.tensor_type.name, tensor)
