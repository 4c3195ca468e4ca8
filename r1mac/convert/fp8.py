"""DeepSeek's block FP8: 8-bit codes with one scale for each block of a matrix."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from r1mac.convert.device import on_cpu
from r1mac.convert.stored import RawTensor, distinct, require_shape
from r1mac.errors import BadCheckpoint

FP8_BLOCK = 128
_SCALE = "_scale_inv"
# float32 as DeepSeek writes them, or a power of two in one byte («ue8m0»).
_SCALE_TYPES = ("F32", "F8_E8M0", "U8")


@dataclass(frozen=True, slots=True, kw_only=True)
class FP8Tensor:
    """A matrix of float8_e4m3fn codes ``[rows, columns]`` and a scale for each block, the last ones partial."""

    codes: RawTensor
    scales: RawTensor
    block: tuple[int, int]

    # The widest that these weights have been published in: no finer original is lost.
    quantized_bits = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return self.codes.shape

    @property
    def size_bytes(self) -> int:
        """Bytes of the codes on disk."""
        return self.codes.size_bytes

    @property
    def row_step(self) -> int:
        """Rows of one block."""
        return self.block[0]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that ``rows`` reads."""
        return distinct(self.codes, self.scales)

    @property
    def value_type(self) -> str:
        """The MLX type that ``rows`` gives."""
        return "bfloat16"

    def rows(self, start: int, stop: int) -> mx.array:
        """Return rows *start* (a multiple of the block's rows) to *stop* as bfloat16."""
        first, last = start // self.block[0], -(-stop // self.block[0])
        scales = self.scales.numpy_rows(first, last)
        if self.scales.dtype != "F32":
            scales = powers_of_two(scales)
        return scale_blocks(decode_fp8(self.codes.numpy_rows(start, stop)), mx.array(scales), self.block)


def find_fp8(raw: Mapping[str, RawTensor], config: Mapping[str, Any]) -> tuple[dict[str, FP8Tensor], set[str]]:
    """Return the block-FP8 matrices by name, and the names of all tensors that they are made of.

    Raises:
        BadCheckpoint: a scale is missing, or is not of the shape or type that its matrix needs.
    """
    block = _block_of(config)
    found = {}
    for name, codes in raw.items():
        if codes.dtype != "F8_E4M3":
            continue
        scales = raw.get(name + _SCALE)
        if scales is None:
            raise BadCheckpoint(
                f"{name} in {codes.path.name} is FP8 without its {_SCALE[1:]}", hint="fetch the checkpoint again"
            )
        expected = tuple(-(-length // size) for length, size in zip(codes.shape, block, strict=False))
        require_shape(scales, _SCALE_TYPES, expected, of=f"{name} of {list(codes.shape)}")
        found[name] = FP8Tensor(codes=codes, scales=scales, block=block)
    return found, set(found) | {name for name in raw if name.endswith(_SCALE)}


def decode_fp8(codes: "np.ndarray[Any, Any]") -> mx.array:
    """Return the bfloat16 values of float8_e4m3fn codes (uint8), exactly.

    On a CPU pairs of codes are looked up in numpy, which takes a seventh of the time of ``mx.from_fp8`` there.
    """
    if not on_cpu() or codes.size % 2:
        return mx.from_fp8(mx.array(codes), dtype=mx.bfloat16)
    pairs = np.ascontiguousarray(codes).reshape(-1).view(np.uint16)
    return mx.array(np.take(_bfloat16_pairs(), pairs).view(np.uint16).reshape(codes.shape)).view(mx.bfloat16)


@cache
def _bfloat16_pairs() -> "np.ndarray[Any, Any]":
    """Return the bits of two bfloat16 values for each of the 65,536 pairs of codes."""
    single = np.array(mx.from_fp8(mx.arange(256, dtype=mx.uint8), dtype=mx.bfloat16).view(mx.uint16))
    pairs = np.arange(2**16, dtype=np.uint16).view(np.uint8)
    return single[pairs].view(np.uint32)


def scale_blocks(weight: mx.array, scales: mx.array, block: tuple[int, int] = (FP8_BLOCK, FP8_BLOCK)) -> mx.array:
    """Return ``weight x scales`` as bfloat16, one scale for each block, the last ones partial.

    The order of operations is mlx-lm's, so that the bits are too: FP8 to bfloat16, times the float32 scale.

    Args:
        weight: bfloat16, ``[rows, columns]``.
        scales: float32, ``[ceil(rows / block[0]), ceil(columns / block[1])]``.
        block: rows and columns that share a scale.
    """
    rows, columns = weight.shape
    whole = rows % block[0] == 0 and columns % block[1] == 0
    if not whole:
        weight = mx.pad(weight, [(0, -rows % block[0]), (0, -columns % block[1])])
    blocks = weight.reshape(scales.shape[0], block[0], scales.shape[1], block[1])
    scaled = (blocks * scales[:, None, :, None]).reshape(weight.shape).astype(mx.bfloat16)
    return scaled if whole else scaled[:rows, :columns]


def powers_of_two(exponents: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Return the float32 values of ue8m0 scales: 2^(e - 127), and NaN for 255 (OCP Microscaling v1.0, 5.4.1)."""
    values = np.ldexp(1.0, exponents.astype(np.int32) - 127)
    return np.where(exponents == 255, np.nan, values).astype(np.float32)  # noqa: PLR2004


def _block_of(config: Mapping[str, Any]) -> tuple[int, int]:
    block = (config.get("quantization_config") or {}).get("weight_block_size") or [FP8_BLOCK, FP8_BLOCK]
    if not (isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)):  # noqa: PLR2004
        raise BadCheckpoint(
            f"config.json says weight_block_size {block!r}, which is not two numbers", hint="fetch config.json again"
        )
    return (block[0], block[1])
