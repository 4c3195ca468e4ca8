"""Fitted codes are MLX's own format, and lose less of a layer's output than rounding does."""

import mlx.core as mx
import pytest

from r1mac.convert.weighted_fit import Affine, descend, feedback_factor, fit, fit_with_feedback, pack

WIDTHS = [(bits, group_size) for bits in (2, 3, 4, 5, 6, 8) for group_size in (32, 64, 128)]
COLUMNS = 256


@pytest.fixture(name="inputs", scope="module")
def _inputs() -> mx.array:
    """Inputs of a layer: channels of very different size, that go together."""
    key = mx.random.key(3)
    own, shared, sizes, mixing = (mx.random.normal(shape, key=part) for shape, part in zip(
        [(2000, COLUMNS), (2000, 8), (COLUMNS,), (8, COLUMNS)], mx.random.split(key, 4), strict=True
    ))  # fmt: skip
    return (own + shared @ mixing) * mx.exp(sizes)


@pytest.fixture(name="weight", scope="module")
def _weight() -> mx.array:
    return mx.random.normal((48, COLUMNS), key=mx.random.key(4)) * 0.05


def _moments(inputs: mx.array) -> mx.array:
    products = inputs.T @ inputs / inputs.shape[0]
    return products + 0.01 * mx.mean(mx.diagonal(products)) * mx.eye(COLUMNS)


def _loss(weight: mx.array, values: mx.array, inputs: mx.array) -> float:
    """Return the mean squared error of what the layer gives."""
    return float(mx.mean(((weight - values) @ inputs.T) ** 2).item())


def _rounded(weight: mx.array, bits: int, group_size: int) -> mx.array:
    codes, scales, biases = mx.quantize(weight.astype(mx.bfloat16), group_size=group_size, bits=bits)
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return mx.dequantize(codes, scales, biases, group_size=group_size, bits=bits)


def _all_ways(weight: mx.array, inputs: mx.array, bits: int, group_size: int) -> dict[str, Affine]:
    products = _moments(inputs)
    options = {"bits": bits, "group_size": group_size, "dtype": mx.bfloat16}
    ahead = fit_with_feedback(weight, feedback_factor(products), **options)
    return {
        "fit": fit(weight, mx.diagonal(products), **options),
        "feedback": ahead,
        "descent": descend(weight, ahead, products, bits=bits, sweeps=4),
    }


@pytest.mark.parametrize(("bits", "group_size"), WIDTHS)
def test_codes_are_packed_as_mlx_packs_them(bits: int, group_size: int) -> None:
    codes = mx.random.randint(0, 2**bits, (6, COLUMNS), key=mx.random.key(bits)).astype(mx.uint32)
    ones, zeros = mx.ones((6, COLUMNS // group_size)), mx.zeros((6, COLUMNS // group_size))

    packed = pack(codes, bits)

    assert packed.shape == mx.quantize(mx.zeros((6, COLUMNS)), group_size=group_size, bits=bits)[0].shape
    unpacked = mx.dequantize(packed, ones, zeros, group_size=group_size, bits=bits)
    assert mx.array_equal(unpacked, codes.astype(mx.float32))


@pytest.mark.parametrize(("bits", "group_size"), WIDTHS)
def test_mlx_computes_with_what_was_fitted(bits: int, group_size: int, weight: mx.array, inputs: mx.array) -> None:
    for made in _all_ways(weight, inputs, bits, group_size).values():
        arrays = (pack(made.codes, bits), made.scales.astype(mx.float32), made.biases.astype(mx.float32))

        assert mx.allclose(mx.dequantize(*arrays, group_size=group_size, bits=bits), made.values(), atol=1e-6)
        product = mx.quantized_matmul(inputs[:3], *arrays, group_size=group_size, bits=bits)
        assert mx.allclose(product, inputs[:3] @ made.values().T, rtol=1e-3, atol=1e-3)
        assert made.scales.dtype == made.biases.dtype == mx.bfloat16


@pytest.mark.parametrize(("bits", "group_size"), [(bits, size) for bits, size in WIDTHS if bits <= 6])
def test_each_way_keeps_more_of_the_output_than_the_one_before(
    bits: int, group_size: int, weight: mx.array, inputs: mx.array
) -> None:
    losses = {
        name: _loss(weight, made.values(), inputs) for name, made in _all_ways(weight, inputs, bits, group_size).items()
    }
    rounding = _loss(weight, _rounded(weight, bits, group_size), inputs)

    assert losses["fit"] < 0.8 * rounding
    assert losses["feedback"] < 0.8 * losses["fit"]
    assert losses["descent"] < 0.95 * losses["feedback"]


def test_rows_may_come_in_blocks_of_any_size(weight: mx.array, inputs: mx.array) -> None:
    whole = _all_ways(weight, inputs, 3, 64)
    halves = [_all_ways(part, inputs, 3, 64) for part in (weight[:20], weight[20:])]

    for name, made in whole.items():
        together = mx.concatenate([half[name].values() for half in halves])
        # Sums of other lengths are rounded otherwise, so a code may fall on the other side now and then.
        assert mx.mean(mx.abs(together - made.values()) > 1e-6).item() < 0.01


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
def test_groups_of_one_value_are_kept(value: float, inputs: mx.array) -> None:
    weight = mx.full((4, COLUMNS), value)

    for made in _all_ways(weight, inputs, 2, 64).values():
        assert mx.allclose(made.values(), weight, rtol=1e-2, atol=1e-6)


def test_channels_that_the_text_never_stirred_are_still_rounded_to_what_they_are(weight: mx.array) -> None:
    moments = mx.concatenate([mx.ones(COLUMNS - 64), mx.zeros(64)])

    made = fit(weight, moments, bits=4, group_size=64, dtype=mx.bfloat16)

    silent = slice(COLUMNS - 64, COLUMNS)
    kept = mx.mean((made.values() - weight)[:, silent] ** 2)
    assert kept.item() < 1.2 * mx.mean((_rounded(weight, 4, 64) - weight)[:, silent] ** 2).item()
