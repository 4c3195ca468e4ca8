"""Rows of codes are what MLX reads them as, and products with them are those with their values."""

import mlx.core as mx
import numpy as np
import pytest

from r1mac.convert.grouped_rows import GroupedRows, Tokens, code_order, decoded_fp8, unpacked

ROWS, COLUMNS = 24, 384
NUMBERS = np.random.default_rng(3)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_affine_codes(bits: int, size: int) -> None:
    """A few tokens are multiplied with codes, and more with what the scales make of them."""
    weights = mx.array(NUMBERS.standard_normal((ROWS, COLUMNS)).astype(np.float32))
    words, scales, biases = mx.quantize(weights, group_size=size, bits=bits)
    wanted = np.array(mx.dequantize(words, scales, biases, group_size=size, bits=bits))

    def rows() -> GroupedRows:
        codes = unpacked(np.array(words), bits).reshape(ROWS, -1, size)
        return GroupedRows(codes, np.array(scales), np.array(biases), code_order(bits, size))

    np.testing.assert_allclose(rows().values(), wanted, atol=1e-6)
    for tokens in (1, 3, size // 2, size):
        x = NUMBERS.standard_normal((tokens, COLUMNS)).astype(np.float32)
        np.testing.assert_allclose(rows().times(Tokens(x)), x @ wanted.T, atol=5e-4)  # of numbers up to 60


def test_fp8_codes() -> None:
    """All of them, by pairs and one by one, the two that are no number among them."""
    codes = np.arange(256, dtype=np.uint8)
    wanted = np.array(mx.from_fp8(mx.array(codes), dtype=mx.float32))
    is_number = (codes & 0x7F) != 0x7F

    for some in (slice(None), slice(1, None)):
        found, numbers = decoded_fp8(np.ascontiguousarray(codes[some])), is_number[some]
        np.testing.assert_array_equal(found[numbers], wanted[some][numbers])
        assert np.isnan(found[~numbers]).all()


def test_scales_without_biases() -> None:
    codes, scales = NUMBERS.standard_normal((ROWS, 3, 128)), NUMBERS.standard_normal((ROWS, 3))
    wanted = (codes * scales[..., None]).reshape(ROWS, -1)

    for tokens in (2, 200):
        x = NUMBERS.standard_normal((tokens, COLUMNS)).astype(np.float32)
        rows = GroupedRows(codes.astype(np.float32), scales.astype(np.float32), None)
        np.testing.assert_allclose(rows.times(Tokens(x)), x @ wanted.T, atol=5e-4)  # of numbers up to 60
