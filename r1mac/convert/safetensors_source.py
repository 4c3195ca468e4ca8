"""A folder of safetensors as a source, whatever its matrices are stored as."""

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from r1mac.catalog.arch import parse_arch, prediction_tensors
from r1mac.convert.abilities import NO_PREDICTION
from r1mac.convert.fp8 import find_fp8
from r1mac.convert.mlx_quantized import find_mlx_quantized
from r1mac.convert.names import is_behind_last_layer
from r1mac.convert.packed_int import find_packed
from r1mac.convert.stored import FLOAT_TYPES, RawTensor, StoredTensor
from r1mac.errors import BadCheckpoint, BadRecipe
from r1mac.formats import folder as model_folder
from r1mac.formats.rope import with_flat_rope
from r1mac.formats.safetensors import TensorEntry, read_header

_READ_METHODS = (None, "fp8", "compressed-tensors")
_PREDICTION_FILES = f"{model_folder.PREDICTION_STEM}*.safetensors"


class SafetensorsSource:
    """A model as the Hub has it: config.json, safetensors files, tokenizer.

    Only headers are read before ``rows`` is called, so the files themselves may come one after the other.
    """

    def __init__(self, folder: Path, *, single_file: Path | None = None, prediction: bool = True) -> None:
        """Open the model in *folder*, or *single_file* with the config.json beside it.

        Without *prediction* its layers behind the last one (DeepSeek's MTP) are not there.
        """
        config = model_folder.read_config(folder)
        entries = _entries_of_file(single_file) if single_file else _entries_of_folder(folder)
        layer_count = config.get("num_hidden_layers")
        predicting = {name for name in entries if type(layer_count) is int and is_behind_last_layer(name, layer_count)}
        self._leaves_out_prediction = bool(predicting) and not prediction
        if self._leaves_out_prediction:
            entries = {name: place for name, place in entries.items() if name not in predicting}
        raw = {name: RawTensor(path, entry) for name, (path, entry) in entries.items()}
        self.description = str(single_file or folder)
        self._folder = folder
        self._paths = sorted({path for path, _ in entries.values()})
        self._tensors = _stored_tensors(self.description, config, raw)
        self._shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.quantized_bits = average_bits(self._tensors.values())
        self.is_quantized = self.quantized_bits is not None
        # What a matrix was stored as ends with this source: its values come out dequantised.
        self.config = with_flat_rope({key: value for key, value in config.items() if key != "quantization"})
        if self.quantized_bits is not None:
            self.config.pop("quantization_config", None)
        dtype = config.get("torch_dtype", config.get("dtype"))
        self.default_dtype: str | None = dtype if dtype in {"float16", "bfloat16", "float32"} else None

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every tensor by name."""
        return self._shapes

    def size_bytes(self, name: str) -> int:
        """Return the bytes that a tensor takes in the source."""
        return self._tensors[name].size_bytes

    def row_step(self, name: str) -> int:
        """Return the number of rows whose multiples ``rows`` may be asked for."""
        return self._tensors[name].row_step

    def files(self, name: str) -> tuple[str, ...]:
        """Return the names of the files that ``rows`` reads for a tensor."""
        return self._tensors[name].files

    def rows(self, name: str, start: int, stop: int) -> mx.array:
        """Return rows *start* to *stop* of a tensor, dequantised."""
        return self._tensors[name].rows(start, stop)

    def stored(self, name: str) -> StoredTensor:
        """Return how a tensor is stored."""
        return self._tensors[name]

    def identity(self) -> Mapping[str, str]:
        """Return what tells every file of weights from what it was: its digest, or else its size and time."""
        aspects = {NO_PREDICTION: "left out"} if self._leaves_out_prediction else {}
        return {**model_folder.file_identities(self._paths), **aspects}

    def value_type(self, name: str) -> str:
        """Return the MLX type that ``rows`` gives for a tensor."""
        return self._tensors[name].value_type

    def write_companions(self, into: Path) -> None:
        """Copy the tokenizer's and licence files byte for byte."""
        copy_companions(self._folder, into)


def copy_companions(folder: Path, into: Path) -> None:
    """Copy the tokenizer's and licence files of a model byte for byte."""
    import shutil

    for name in model_folder.COMPANION_NAMES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, into / name)


def average_bits(tensors: Iterable[StoredTensor]) -> float | None:
    """Return the mean width of the codes of all quantised matrices, or None where nothing is quantised."""
    quantized = [(tensor.quantized_bits, prod(tensor.shape)) for tensor in tensors if tensor.quantized_bits is not None]
    if not quantized:
        return None
    return sum(bits * size for bits, size in quantized) / max(sum(size for _, size in quantized), 1)


def _entries_of_file(path: Path) -> dict[str, tuple[Path, TensorEntry]]:
    _refuse_part(path)
    return {name: (path, entry) for name, entry in read_header(path).items()}


def _entries_of_folder(folder: Path) -> dict[str, tuple[Path, TensorEntry]]:
    """Return every tensor of a model, and those that an MLX model has in files which its index does not name."""
    entries = model_folder.read_tensors(folder)
    known = {path for path, _ in entries.values()}
    for path in sorted(
        {*folder.glob(_PREDICTION_FILES), *model_folder.expected_files(folder, _PREDICTION_FILES)} - known
    ):
        here = path.is_file()
        found = read_header(path if here else model_folder.header_path(path), header_only=not here)
        entries |= {name: (path, entry) for name, entry in found.items() if name not in entries}
    return entries


def _refuse_part(path: Path) -> None:
    """Refuse one file of several: alone it lacks tensors, and it is rarely meant alone."""
    index = path.parent / model_folder.INDEX_NAME
    if not index.is_file():
        return
    weight_map = model_folder.read_json(index).get("weight_map")
    files = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if path.name in files and len(files) > 1:
        raise BadCheckpoint(
            f"{path.name} is one of {len(files)} files of a model",
            hint=f"name its folder: {path.parent}",
        )


def _stored_tensors(
    description: str, config: Mapping[str, Any], raw: Mapping[str, RawTensor]
) -> dict[str, StoredTensor]:
    method = (config.get("quantization_config") or {}).get("quant_method")
    is_mlx = "quantization" in config or any(name.endswith(".scales") for name in raw)
    if method not in _READ_METHODS and not is_mlx:
        raise BadRecipe(
            f"{description} is quantised with {method}, which r1mac does not read",
            hint="convert the original weights instead",
        )
    found: dict[str, StoredTensor] = {}
    used: set[str] = set()
    fp8, fp8_names = find_fp8(raw, config)
    found |= fp8
    used |= fp8_names
    if is_mlx:
        quantized, names = find_mlx_quantized(raw, config, _columns(config))
        found |= quantized
        used |= names
    elif method == "compressed-tensors":
        packed, names = find_packed(raw, config)
        found |= packed
        used |= names
    for name, tensor in raw.items():
        if name in used:
            continue
        if tensor.dtype not in FLOAT_TYPES:
            raise BadCheckpoint(
                f"{name} in {tensor.path.name} is {tensor.dtype}, which r1mac cannot convert",
                hint="use a bfloat16, float16, float32 or DeepSeek block-FP8 copy of the model",
            )
        found[name] = tensor
    return found


def _columns(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the columns of every matrix of the MLX model; nothing where config.json does not describe one."""
    try:
        arch = parse_arch(config)
        behind = range(arch.layer_count, arch.layer_count + max(arch.prediction_layer_count, 1)) if arch.experts else ()
        tensors = [*arch.tensors, *(tensor for index in behind for tensor in prediction_tensors(arch, index))]
        return {tensor.name: tensor.shape[-1] for tensor in tensors}
    except (KeyError, TypeError, ValueError):
        return {}
