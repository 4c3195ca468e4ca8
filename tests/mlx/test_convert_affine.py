"""Quantising on a CPU by whole columns: the bits of ``mx.quantize`` on values that are chosen to break it."""

import mlx.core as mx
import numpy as np
import pytest

from r1mac.convert.affine import Groups, is_exact, quantize_groups
from r1mac.convert.blocks import as_numpy
from r1mac.convert.encode import Encoder, Form
from r1mac.errors import BadCheckpoint
from r1mac.plan.memory import Quantization

TYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}
SIZES = (32, 64, 128)
WIDTHS = [Quantization(bits, size) for bits in (2, 3, 4, 5, 6, 8) for size in SIZES]
ROWS = 1000


def any_bits(rng, size):
    """Every exponent, subnormal numbers and both zeros among them."""
    values = rng.integers(0, 2**32, (ROWS, size), dtype=np.uint32).view(np.float32)
    return np.where(np.isfinite(values), values, 0)


def weights(rng, size):
    """What weights look like, in groups of every magnitude."""
    return rng.standard_normal((ROWS, size)) * np.exp2(rng.integers(-40, 15, (ROWS, 1)))


def halves(rng, size):
    """Values halfway between two steps, and groups of one value."""
    return np.rint(rng.standard_normal((ROWS, size)) * rng.integers(0, 5, (ROWS, 1))) / 2 + rng.integers(-3, 3)


def least_steps(rng, size):
    """Groups narrower than the least step."""
    return rng.integers(0, 3, (ROWS, size)) * 5e-8 + rng.integers(-5, 5, (ROWS, 1)) * 5e-8


def powers(rng, size):
    """Powers of two of both signs, whose differences pass what the type can hold."""
    return np.exp2(rng.integers(-140, 127, (ROWS, size)).astype(float)) * rng.choice([-1, 1], (ROWS, size))


def in_type(values, dtype):
    """Return *values* in the type, with zeros where they are not finite in it."""
    cast = mx.array(values.astype(np.float32)).astype(dtype)
    return mx.where(mx.isfinite(cast), cast, mx.array(0, dtype=dtype))


@pytest.mark.parametrize("make", [any_bits, weights, halves, least_steps, powers])
@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_the_bits_are_those_of_mlx(dtype, make):
    """Codes, scales and biases equal ``mx.quantize``'s, for all widths with groups of one size at once."""
    for size in SIZES:
        widths = [width for width in WIDTHS if width.group_size == size]
        groups = as_numpy(values := in_type(make(np.random.default_rng(size), size), dtype))
        ours = [Groups.empty(len(groups), width, groups.dtype) for width in widths]

        quantize_groups(groups, widths, ours)

        for width, made in zip(widths, ours, strict=True):
            theirs = mx.quantize(values, group_size=size, bits=width.bits, stream=mx.cpu)
            for name, one, two in zip(Groups._fields, made, theirs, strict=True):
                assert one.tobytes() == as_numpy(two).tobytes(), (width, name)


@pytest.mark.parametrize("width", WIDTHS, ids=str)
def test_a_width_alone_is_what_it_is_beside_others(width):
    """One group, one more than a round number of them, and many."""
    for count in (1, 257, 3000):
        values = mx.random.normal((count, width.group_size), key=mx.random.key(count)).astype(mx.bfloat16)
        groups = as_numpy(values)
        ours = Groups.empty(count, width, groups.dtype)

        quantize_groups(groups, [width], [ours])

        theirs = mx.quantize(values, group_size=width.group_size, bits=width.bits, stream=mx.cpu)
        for name, one, two in zip(Groups._fields, ours, theirs, strict=True):
            assert one.tobytes() == as_numpy(two).tobytes(), (count, name)


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_it_is_used_where_it_is_exact(dtype):
    """With the MLX that is installed every width is; the floating-point modes are MLX's own."""
    assert all(is_exact(width, dtype) for width in WIDTHS)
    assert not is_exact(Quantization(4, 32, "mxfp4"), dtype)


def test_forms_of_one_block_do_not_mix():
    """Several widths, sizes of groups, types and modes at once are what each is alone."""
    values = mx.random.normal((600, 1024), key=mx.random.key(7))
    forms = [
        Form(mx.bfloat16, Quantization(2, 64)),
        Form(mx.float16, Quantization(3, 32)),
        Form(mx.bfloat16, None),
        Form(mx.bfloat16, Quantization(4, 32, "mxfp4")),
        Form(mx.bfloat16, Quantization(6, 64)),
        Form(mx.float16, Quantization(3, 128)),
        Form(mx.bfloat16, Quantization(2, 64)),
    ]
    with Encoder() as encoder:
        found = encoder.begin("t", values, forms).wait()

    for form, arrays in zip(forms, found, strict=True):
        cast = values.astype(form.dtype)
        expected = (cast,) if form.width is None else mx.quantize(cast, form.width.group_size, *form.width[::2])
        assert [array.tobytes() for array in arrays] == [as_numpy(array).tobytes() for array in expected], form


def test_a_value_that_is_not_finite_in_one_type_is_told():
    """1e30 fits bfloat16 and not float16; the text names the tensor and the type."""
    values = mx.array(np.full((2, 64), 1e30, np.float32))
    with Encoder() as encoder:
        encoder.begin("layer.weight", values, [Form(mx.bfloat16, Quantization(4))]).wait()
        with pytest.raises(BadCheckpoint, match=r"layer\.weight .* not finite in float16"):
            encoder.begin("layer.weight", values, [Form(mx.float16, Quantization(4))]).wait()
