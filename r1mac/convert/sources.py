"""Weights to convert, as a stream: a folder of safetensors or a GGUF file, read by ranges of rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from r1mac.errors import BadCheckpoint, BadRecipe
from r1mac.formats import folder as model_folder
from r1mac.formats.safetensors import TensorEntry

_NUMPY_TYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # numpy has no bfloat16: the bits travel as integers
    "F8_E4M3": np.uint8,
    "F64": np.float64,
}

FP8_BLOCK = 128
_FP8_SCALE = "_scale_inv"


class Source(Protocol):
    """Weights under their Hugging Face names, with all that a model folder needs beside them.

    Attributes:
        config: the contents of config.json.
        description: what and where it is, for provenance.
        default_dtype: type of the converted model where the recipe does not say; None keeps each tensor's own.
    """

    config: dict[str, Any]
    description: str
    default_dtype: str | None

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every tensor by name."""
        ...

    def size_bytes(self, name: str) -> int:
        """Return the bytes that a tensor takes in the source."""
        ...

    def row_step(self, name: str) -> int:
        """Return the number of rows whose multiples ``rows`` may be asked for."""
        ...

    def rows(self, name: str, start: int, stop: int) -> mx.array:
        """Return rows *start* to *stop* of a tensor, dequantised if it was quantised."""
        ...

    def write_companions(self, into: Path) -> None:
        """Put the tokenizer's and other files that go with the weights into a folder."""
        ...


def open_source(path: Path) -> Source:
    """Open a folder of safetensors or a GGUF file; only headers are read.

    Raises:
        BadCheckpoint: it is damaged, of an unknown kind, or not there.
        BadRecipe: it is quantised already.
    """
    if path.is_dir():
        return SafetensorsSource(path)
    if path.suffix.lower() == ".gguf":
        from r1mac.convert.gguf_source import GGUFSource

        return GGUFSource(path)
    if not path.exists():
        raise BadCheckpoint(f"there is nothing at {path}", hint="check the path")
    if path.suffix == ".safetensors":
        raise BadCheckpoint(
            f"{path.name} is one file of a model, without the config.json and tokenizer that lie beside it",
            hint=f"name its folder: {path.parent}",
        )
    if path.suffix in model_folder.PICKLE_SUFFIXES:
        raise BadCheckpoint(
            f"{path.name} is a pickle file, which can run code when it is opened",
            hint="use a safetensors or GGUF copy of the model",
        )
    raise BadCheckpoint(
        f"{path.name} is neither a folder nor a GGUF file", hint="name a model's folder or a .gguf file"
    )


class SafetensorsSource:
    """A folder as the Hub has it: config.json, safetensors files, tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.config = model_folder.read_config(folder)
        self.description = str(folder)
        self.default_dtype = self.config.get("torch_dtype")
        self._folder = folder
        self._tensors = model_folder.read_tensors(folder)
        if self.default_dtype not in {"float16", "bfloat16", "float32"}:
            self.default_dtype = None
        _refuse_quantized(folder, self.config, self._tensors)
        # Block-FP8 matrices come with a float32 scale for each 128 x 128 block, which is not a tensor of the model.
        self._scales = {name for name in self._tensors if name.endswith(_FP8_SCALE)}
        self._check_types()
        self._shapes = {name: entry.shape for name, (_, entry) in self._tensors.items() if name not in self._scales}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every tensor by name."""
        return self._shapes

    def size_bytes(self, name: str) -> int:
        """Return the bytes that a tensor takes in the source."""
        return self._tensors[name][1].size_bytes

    def row_step(self, name: str) -> int:
        """Return the number of rows whose multiples ``rows`` may be asked for."""
        return FP8_BLOCK if self._is_fp8(name) else 1

    def rows(self, name: str, start: int, stop: int) -> mx.array:
        """Return rows *start* to *stop* of a tensor; FP8 becomes bfloat16."""
        path, entry = self._tensors[name]
        values = _read_rows(path, entry, start, stop)
        if not self._is_fp8(name):
            return values
        scale_path, scale_entry = self._tensors[name + _FP8_SCALE]
        scales = _read_rows(scale_path, scale_entry, start // FP8_BLOCK, -(-stop // FP8_BLOCK))
        return dequantize_block_fp8(values, scales)

    def write_companions(self, into: Path) -> None:
        """Copy the tokenizer's and licence files byte for byte."""
        import shutil

        for name in model_folder.COMPANION_NAMES:
            if (self._folder / name).is_file():
                shutil.copyfile(self._folder / name, into / name)

    def _is_fp8(self, name: str) -> bool:
        return self._tensors[name][1].dtype == "F8_E4M3"

    def _check_types(self) -> None:
        for name, (path, entry) in self._tensors.items():
            if entry.dtype not in _NUMPY_TYPES:
                raise BadCheckpoint(
                    f"{name} in {path.name} is {entry.dtype}, which r1mac cannot convert",
                    hint="use a bfloat16, float16, float32 or DeepSeek block-FP8 copy of the model",
                )
            if entry.dtype == "F8_E4M3" and name + _FP8_SCALE not in self._tensors:
                raise BadCheckpoint(
                    f"{name} in {path.name} is FP8 without its {_FP8_SCALE[1:]}", hint="fetch the checkpoint again"
                )
            if entry.dtype == "F8_E4M3":
                self._check_scale(name, entry)

    def _check_scale(self, name: str, entry: TensorEntry) -> None:
        scale = self._tensors[name + _FP8_SCALE][1]
        expected = tuple(-(-length // FP8_BLOCK) for length in entry.shape)
        if scale.shape != expected or scale.dtype != "F32":
            raise BadCheckpoint(
                f"{scale.name} is {scale.dtype} {list(scale.shape)}, and {name} of {list(entry.shape)} needs "
                f"F32 {list(expected)}",
                hint="fetch the checkpoint again",
            )


def dequantize_block_fp8(values: mx.array, scales: mx.array) -> mx.array:
    """Return ``values x scales`` as bfloat16, one scale for each block of 128 x 128, the last ones partial.

    The order of operations is mlx-lm's, so that the bits are too: FP8 to bfloat16, times the float32 scale.

    Args:
        values: uint8 codes of float8_e4m3fn, ``[rows, columns]``.
        scales: float32, ``[ceil(rows / 128), ceil(columns / 128)]``.
    """
    rows, columns = values.shape
    weight = mx.from_fp8(values, dtype=mx.bfloat16)
    weight = mx.pad(weight, [(0, -rows % FP8_BLOCK), (0, -columns % FP8_BLOCK)])
    blocks = weight.reshape(scales.shape[0], FP8_BLOCK, scales.shape[1], FP8_BLOCK)
    scaled = (blocks * scales[:, None, :, None]).reshape(weight.shape)
    return scaled[:rows, :columns].astype(mx.bfloat16)


def _read_rows(path: Path, entry: TensorEntry, start: int, stop: int) -> mx.array:
    numpy_type = np.dtype(_NUMPY_TYPES[entry.dtype])
    row_values = 1
    for length in entry.shape[1:]:
        row_values *= length
    count = (stop - start) * row_values
    assert 0 <= start <= stop <= (entry.shape[0] if entry.shape else 1)
    try:
        raw = np.fromfile(
            path, dtype=numpy_type, count=count, offset=entry.start + start * row_values * numpy_type.itemsize
        )
    except OSError as error:
        raise BadCheckpoint(f"cannot read {path}: {error.strerror}", hint="check the file and its disk") from error
    if raw.size != count:
        raise BadCheckpoint(
            f"{path.name} became shorter while it was read", hint="do not change it during a conversion"
        )
    values = mx.array(raw.reshape((stop - start, *entry.shape[1:]) if entry.shape else ()))
    return values.view(mx.bfloat16) if entry.dtype == "BF16" else values


def _refuse_quantized(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, tuple[Path, TensorEntry]]) -> None:
    if "quantization" in config or any(name.endswith(".scales") for name in tensors):
        raise BadRecipe(
            f"{folder} is an MLX model that is quantised already, and quantising it again would lose more",
            hint="convert the original weights instead",
        )
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method not in {None, "fp8"}:
        raise BadRecipe(f"{folder} is quantised with {method}", hint="convert the original weights instead")
