"""Values to codes for the cache: as near as their stored scale allows, in every type."""

import mlx.core as mx
import pytest

from r1mac.engine.layers.codes import to_codes

GROUP = 32
TYPES = [mx.float32, mx.float16, mx.bfloat16]


def rows_of(dtype: mx.Dtype) -> mx.array:
    """Return rows of very different sizes, some of them far from zero and some with one value that stands out."""
    mx.random.seed(3)
    rows = mx.random.normal((60, 128)) * mx.array([0.01, 1.0, 100.0] * 20)[:, None]
    rows = rows + mx.array([0.0, 0.0, 0.0, 5.0, -50.0, 1000.0] * 10)[:, None]
    rows[7:20, 5] = 300.0
    return rows.astype(dtype)


def grouped(rows: mx.array) -> mx.array:
    return rows.astype(mx.float32).reshape(rows.shape[0], -1, GROUP)


def given_back(parts: tuple[mx.array, ...], bits: int) -> mx.array:
    """Return what the stored parts stand for, without further rounding."""
    codes, scales, biases = parts
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return mx.dequantize(codes, scales, biases, group_size=GROUP, bits=bits)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_each_value_has_the_code_that_is_nearest(dtype: mx.Dtype, bits: int) -> None:
    """No value is off by more than half a step of the scale that is stored, but for a group's largest: by one."""
    rows = rows_of(dtype)

    parts = to_codes(rows, bits=bits, group_size=GROUP)

    steps = parts[1].astype(mx.float32)[..., None]
    values = grouped(rows)
    errors = mx.abs(grouped(given_back(parts, bits)) - values) / steps
    largest = values == values.max(axis=-1, keepdims=True)
    rounding = 1e-3 + float((mx.abs(values) * 2e-7 / steps).max())
    assert float(mx.where(largest, 0, errors).max()) <= 0.5 + rounding
    assert float(errors.max()) <= 1 + rounding


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_it_is_stored_as_mlx_stores_it(dtype: mx.Dtype, bits: int) -> None:
    """Types and shapes are those of ``mx.quantize``, and products with the codes are those with their values."""
    rows = rows_of(dtype)

    parts = to_codes(rows, bits=bits, group_size=GROUP)

    theirs = mx.quantize(rows, group_size=GROUP, bits=bits)
    assert [(part.dtype, part.shape) for part in parts] == [(part.dtype, part.shape) for part in theirs]
    queries = mx.random.normal((3, 128))
    products = mx.quantized_matmul(
        queries, parts[0], *(part.astype(mx.float32) for part in parts[1:]), group_size=GROUP, bits=bits
    )
    assert mx.allclose(products, queries @ given_back(parts, bits).T, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("dtype", "bits", "share"), [(mx.bfloat16, 8, 0.8), (mx.float32, 8, 0.98), (mx.float32, 4, 0.98)]
)
def test_less_is_lost_than_by_mlx(dtype: mx.Dtype, bits: int, share: float) -> None:
    """Root mean square errors beside those of ``mx.quantize``, on values as caches hold them."""
    mx.random.seed(4)
    rows = (2 * mx.random.normal((2000, 64)) + 0.3).astype(dtype)

    def error(parts: tuple[mx.array, ...]) -> float:
        return float(mx.sqrt(mx.square(given_back(parts, bits) - rows.astype(mx.float32)).mean()))

    ours = error(to_codes(rows, bits=bits, group_size=GROUP))

    assert ours < share * error(mx.quantize(rows, group_size=GROUP, bits=bits))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_what_is_all_alike_comes_back_exactly(dtype: mx.Dtype, bits: int) -> None:
    """Groups of one number, zero among them, have no step, and lose nothing."""
    rows = mx.broadcast_to(mx.array([0.0, 1.0, -3.25, 1e-6, 6e4])[:, None], (5, 64)).astype(dtype)

    parts = to_codes(rows, bits=bits, group_size=GROUP)

    assert mx.array_equal(given_back(parts, bits), rows.astype(mx.float32))


@pytest.mark.parametrize("bits", [8, 4])
def test_what_differs_by_less_than_a_scale_can_be_is_alike(bits: int) -> None:
    """In float16 no scale is small enough for a group of the smallest numbers: none comes back as a large one."""
    rows = (mx.arange(64)[None] * 6e-8).astype(mx.float16)

    parts = to_codes(rows, bits=bits, group_size=GROUP)

    assert float(mx.abs(given_back(parts, bits) - rows.astype(mx.float32)).max()) < 64 * 6e-8
