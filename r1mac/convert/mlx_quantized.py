"""Matrices that MLX quantised already, read as the values that they stand for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from r1mac.convert.stored import FLOAT_TYPES, VALUE_TYPES, RawTensor, distinct
from r1mac.errors import BadCheckpoint

# The modes whose scales are bytes: mode by (bits, values that share a scale). Affine allows other pairs.
_BYTE_SCALED = {(4, 32): "mxfp4", (8, 32): "mxfp8", (4, 16): "nvfp4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MLXQuantizedTensor:
    """Codes ``[..., words]`` of 32 bits, scales ``[..., groups]`` and, where the mode is affine, biases like them."""

    codes: RawTensor
    scales: RawTensor
    biases: RawTensor | None
    bits: int
    group_size: int
    mode: str

    row_step = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return (*self.codes.shape[:-1], self.scales.shape[-1] * self.group_size)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, with scales and biases."""
        return sum(part.size_bytes for part in (self.codes, self.scales, self.biases) if part is not None)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that ``rows`` reads."""
        return distinct(self.codes, self.scales, self.biases)

    @property
    def quantized_bits(self) -> int:
        """Width of a code."""
        return self.bits

    @property
    def value_type(self) -> str:
        """The MLX type that ``rows`` gives."""
        return VALUE_TYPES.get(self.scales.dtype, "bfloat16")

    def rows(self, start: int, stop: int) -> mx.array:
        """Return rows *start* to *stop* dequantised, in the scales' type (byte-scaled modes: bfloat16)."""
        return mx.dequantize(
            self.codes.rows(start, stop),
            self.scales.rows(start, stop),
            None if self.biases is None else self.biases.rows(start, stop),
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )


def find_mlx_quantized(
    raw: Mapping[str, RawTensor], config: Mapping[str, Any], in_dims: Mapping[str, int]
) -> tuple[dict[str, MLXQuantizedTensor], set[str]]:
    """Return the quantised matrices by name, and the names of all tensors that they are made of.

    Args:
        raw: all tensors by name.
        config: config.json, whose ``quantization`` names widths for all and for single modules.
        in_dims: columns of the model's matrices by name, as its architecture has them; they tell the width of a
            matrix that ``quantization`` does not name, as mlx-lm finds it.

    Raises:
        BadCheckpoint: parts of a matrix are missing or do not fit each other.
    """
    found, used = {}, set()
    for scales_name in [name for name in raw if name.endswith(".scales")]:
        module = scales_name.removesuffix(".scales")
        name = f"{module}.weight"
        if name not in raw:
            raise BadCheckpoint(f"there is {scales_name} without {name}", hint="fetch the checkpoint again")
        found[name] = _tensor(module, raw, config.get("quantization") or {}, in_dims.get(name))
        used |= {name, scales_name, f"{module}.biases"}
    return found, used & raw.keys()


def _tensor(
    module: str, raw: Mapping[str, RawTensor], quantization: Mapping[str, Any], in_dim: int | None
) -> MLXQuantizedTensor:
    codes, scales, biases = raw[f"{module}.weight"], raw[f"{module}.scales"], raw.get(f"{module}.biases")
    if f"{module}.global_scale" in raw:
        raise BadCheckpoint(
            f"{module}.global_scale is a second scale, which r1mac does not read",
            hint="convert the original weights instead",
        )
    own = quantization.get(module)
    said = own if isinstance(own, Mapping) else quantization
    bits: Any = said.get("bits")
    group_size: Any = said.get("group_size")
    if in_dim is not None and not isinstance(own, Mapping) and codes.shape and scales.shape and scales.shape[-1]:
        group_size, bits = in_dim // scales.shape[-1], codes.shape[-1] * 32 // in_dim
    byte_scaled = scales.dtype == "U8"
    mode = _BYTE_SCALED.get((bits, group_size), "") if byte_scaled else "affine"
    fits = (
        type(bits) is int
        and type(group_size) is int
        and codes.dtype == "U32"
        and bool(mode)
        and (byte_scaled or scales.dtype in FLOAT_TYPES)
        and len(codes.shape) > 1
        and codes.shape[:-1] == scales.shape[:-1]
        and codes.shape[-1] * 32 == scales.shape[-1] * group_size * bits
        and (biases is None) == byte_scaled
        and (biases is None or (biases.shape, biases.dtype) == (scales.shape, scales.dtype))
    )
    if not fits:
        raise BadCheckpoint(
            f"{module} has codes {codes.dtype} {list(codes.shape)} and scales {scales.dtype} {list(scales.shape)}, "
            f"which are not {bits} bits in groups of {group_size}",
            hint="config.json and the weights are not of the same model; fetch them again",
        )
    return MLXQuantizedTensor(codes=codes, scales=scales, biases=biases, bits=bits, group_size=group_size, mode=mode)
