"""The forecast of speed: what it says of models and machines, and what real runs change."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.catalog.models import all_models, find
from r1mac.machine.base import HardwareProfile
from r1mac.machine.fake import LINUX_64, M1_8, M3_ULTRA_512, M4_MAX_128, M5_PRO_64, M6_32_MACOS27, VIRTUAL_MAC_7
from r1mac.machine.imagined import mac
from r1mac.plan.memory import Quantization, kv_bytes_per_token, tensor_bytes, weight_bytes
from r1mac.plan.speed import Calibration, Speed, calibrate, forecast

TOKENS = st.integers(1, 200_000)
R1 = "671b"


def speed_of(name: str, hardware: HardwareProfile, *, bits: int = 4, **wishes) -> Speed:
    """Return the forecast for a model of the catalog at *bits*."""
    arch = find(name).arch
    costs = {"stored_bytes": weight_bytes(arch, Quantization(bits)), "kv_bytes_per_token": kv_bytes_per_token(arch)}
    speed = forecast(arch, hardware, **{**costs, **wishes})
    assert speed is not None
    return speed


def test_a_sum_done_by_hand():
    """R1 at 4 bits on an M3 Ultra with 80 cores: 20.6 GB, 1525 kernels and 58 expert layers a token."""
    speed = speed_of(R1, M3_ULTRA_512)

    # 36.63e9 weights x 4.5 bits = 20.6 GB of 819 GB/s x 0.752: 33.5 ms; 61 x 25 kernels x 2.6 us: 4.0; 58 x 142 us: 8.2
    assert speed.token_seconds == pytest.approx(0.0457, rel=0.005)
    # 70,272 bytes of 819 GB/s x 0.6: 0.14 us; 61 x 278,528 operations of 80 x 279e9 a second: 0.76
    assert speed.cached_token_seconds == pytest.approx(0.90e-6, rel=0.01)
    assert speed.decode_tokens_per_s(0) == pytest.approx(21.9, abs=0.1)
    assert speed.decode_tokens_per_s(16_384) == pytest.approx(16.5, abs=0.1)


def test_a_typical_answer_of_0528():
    """23,000 tokens take R1 on an M3 Ultra about 21 minutes: longer than at the speed of the first token."""
    speed = speed_of(R1, M3_ULTRA_512)

    seconds = speed.answer_seconds(prompt_tokens=200, generated_tokens=find(R1).typical_answer_tokens)

    # 23,000 x 45.7 ms = 1051 s; 23,000 x 11,700 tokens in the cache x 0.90 us = 242; 1.6 to read the prompt
    assert seconds == pytest.approx(1295, rel=0.01)


@given(prompt_tokens=st.integers(1, 6000), generated_tokens=st.integers(0, 300), step_tokens=st.sampled_from([64, 512]))
@pytest.mark.parametrize("name", [R1, "8b"])
def test_an_answer_is_the_sum_of_its_tokens(name, prompt_tokens, generated_tokens, step_tokens):
    """The time of an answer is that of the prompt and of each token in the cache that it meets."""
    speed = speed_of(name, M3_ULTRA_512, step_tokens=step_tokens)

    decoding = sum(1 / speed.decode_tokens_per_s(prompt_tokens + index) for index in range(generated_tokens))

    whole = speed.answer_seconds(prompt_tokens=prompt_tokens, generated_tokens=generated_tokens)
    assert whole == pytest.approx(speed.prefill_seconds(prompt_tokens) + decoding)


@given(TOKENS, TOKENS)
@pytest.mark.parametrize("name", [R1, "32b"])
def test_longer_is_slower(name, one, other):
    """More in the cache never makes a token faster, nor a longer prompt an answer."""
    speed = speed_of(name, M3_ULTRA_512, step_tokens=256)
    less, more = sorted((one, other))

    assert speed.decode_tokens_per_s(more) <= speed.decode_tokens_per_s(less)
    assert speed.prefill_seconds(more) >= speed.prefill_seconds(less)
    assert speed.answer_seconds(prompt_tokens=less, generated_tokens=more) >= speed.prefill_seconds(less)


@pytest.mark.parametrize("name", [model.key for model in all_models()])
def test_fewer_bits_are_read_faster(name):
    """Every model decodes faster at fewer bits, and prefill, which is arithmetic, hardly gains."""
    speeds = [speed_of(name, M4_MAX_128, bits=bits) for bits in (3, 4, 6, 8, 16)]
    decode = [speed.decode_tokens_per_s(4096) for speed in speeds]

    assert decode == sorted(decode, reverse=True)
    assert decode[0] > decode[-1]
    assert speeds[0].prompt_token_seconds == speeds[-1].prompt_token_seconds


@pytest.mark.parametrize(
    ("slower", "faster", "decode", "prefill"),
    [
        (mac("Apple M1", memory_gib=16), mac("Apple M1 Max", memory_gib=64), 3, 2.5),
        (mac("Apple M4", memory_gib=32), mac("Apple M4 Pro", memory_gib=48), 1.5, 1.5),
        (M4_MAX_128, M3_ULTRA_512, 1.1, 1.5),  # 546 GB/s of one die against 819 of two
        (mac("Apple M4", memory_gib=32), mac("Apple M5", memory_gib=32), 1.15, 3),  # Apple: 1.19 to 1.27, 3.3 to 4.1
        (mac("Apple M4 Max", memory_gib=36), M4_MAX_128, 1.2, 1.2),
    ],
    ids=lambda value: value.chip if isinstance(value, HardwareProfile) else "",
)
def test_the_faster_mac_is_faster(slower, faster, decode, prefill):
    """Bandwidth decides the answer, the GPU the prompt; a Mac with more of both is faster by at least so much."""
    slow, fast = speed_of("8b", slower), speed_of("8b", faster)

    assert fast.decode_tokens_per_s(2048) > decode * slow.decode_tokens_per_s(2048)
    assert fast.prefill_tokens_per_s(2048) > prefill * slow.prefill_tokens_per_s(2048)


def test_a_short_step_costs_a_mixture_of_experts_much():
    """Every step reads all experts and expands MLA's whole cache again: 256 tokens a step take R1 half as long more."""
    usual, short = speed_of(R1, M3_ULTRA_512), speed_of(R1, M3_ULTRA_512, step_tokens=256)
    dense, short_dense = speed_of("70b", M3_ULTRA_512), speed_of("70b", M3_ULTRA_512, step_tokens=256)

    assert short.prefill_seconds(16_384) > 1.5 * usual.prefill_seconds(16_384)
    assert short_dense.prefill_seconds(16_384) < 1.1 * dense.prefill_seconds(16_384)


def test_what_a_recipe_reads_may_be_said():
    """Experts at 2 bits and the rest at 6 read more than the mean width tells, so they are slower."""
    arch = find(R1).arch
    experts, rest = Quantization(2), Quantization(6)

    def width(tensor):
        return experts if "switch_mlp" in tensor.name else rest

    sizes = [(count * tensor_bytes(t.shape, width(t)), t.read_share) for count, t in arch.counted_tensors]
    stored, read = sum(size for size, _ in sizes), sum(size * share for size, share in sizes)
    told = speed_of(R1, M3_ULTRA_512, stored_bytes=stored, read_bytes=read)
    guessed = speed_of(R1, M3_ULTRA_512, stored_bytes=stored)

    assert read == pytest.approx(19.5e9, rel=0.01)
    assert told.decode_tokens_per_s(0) == pytest.approx(22.7, abs=0.3)
    assert guessed.decode_tokens_per_s(0) > 1.2 * told.decode_tokens_per_s(0)


@pytest.mark.parametrize("name", [R1, "32b", "1.5b"])
def test_the_mean_width_tells_what_a_plain_conversion_reads(name):
    """Without being told, the bytes read are those of the tensors, within one percent: only routers are wider."""
    arch = find(name).arch
    width = Quantization(4)
    sizes = [
        (t, count * tensor_bytes(t.shape, width if t.role == "matrix" else None)) for count, t in arch.counted_tensors
    ]
    exact = speed_of(name, M4_MAX_128, read_bytes=sum(size * t.read_share for t, size in sizes))

    assert speed_of(name, M4_MAX_128).decode_tokens_per_s(0) == pytest.approx(exact.decode_tokens_per_s(0), rel=0.01)


@pytest.mark.parametrize(
    "hardware", [LINUX_64, VIRTUAL_MAC_7, mac("Apple M9 Max", memory_gib=128), mac("Apple silicon", memory_gib=16)]
)
def test_no_forecast_where_nothing_is_known(hardware):
    """No Mac, a virtual one or a chip that is not in the table: silence instead of a guess."""
    arch = find("8b").arch

    assert forecast(arch, hardware, stored_bytes=5 * 10**9, kv_bytes_per_token=147_456) is None


@pytest.mark.parametrize(
    ("hardware", "basis"),
    [(M3_ULTRA_512, "measured"), (M4_MAX_128, "measured"), (M1_8, "kin"), (M5_PRO_64, "kin"), (M6_32_MACOS27, "kin")],
    ids=lambda value: value.chip if isinstance(value, HardwareProfile) else "",
)
def test_it_says_how_sure_it_is(hardware, basis):
    """A chip with published runs is told from one that its relatives stand for."""
    assert speed_of("8b", hardware).basis == basis


def test_matrix_units_need_macos_26_2():
    """An M5 reads prompts several times faster once macOS lets MLX use its matrix units; decoding does not change."""
    before, after = (
        speed_of("8b", mac("Apple M5 Max", memory_gib=128, gpu_core_count=40, macos=macos))
        for macos in ("26.1", "26.2")
    )

    assert after.prefill_tokens_per_s(4096) > 3 * before.prefill_tokens_per_s(4096)
    assert after.decode_tokens_per_s(4096) == before.decode_tokens_per_s(4096)


def test_an_unknown_gpu_is_the_smallest_one():
    """Where the number of GPU cores is not told, the forecast promises no more than the smallest one gives."""
    unsaid = speed_of("8b", mac("Apple M3 Ultra", memory_gib=256))
    smallest = speed_of("8b", mac("Apple M3 Ultra", memory_gib=256, gpu_core_count=60))

    assert unsaid == smallest


@given(st.floats(0.01, 1000), st.floats(0.01, 1000), TOKENS)
def test_a_slower_run_never_raises_the_forecast(one, other, context_tokens):
    """What is kept of a slower run gives a slower forecast, for this model and for another."""
    speed = speed_of("8b", M4_MAX_128)
    slow, fast = (
        calibrate(speed, decode_tokens_per_s=measured, context_tokens=context_tokens)
        for measured in sorted((one, other))
    )

    for name in ("8b", "70b"):
        slower, faster = (speed_of(name, M4_MAX_128, calibration=kept) for kept in (slow, fast))
        assert slower.decode_tokens_per_s(4096) <= faster.decode_tokens_per_s(4096)


@given(st.floats(0, math.inf), st.floats(0, math.inf), TOKENS)
def test_an_absurd_run_does_not_make_the_forecast_absurd(decode, prefill, tokens):
    """Whatever was measured, the forecast stays within a fifth of itself and what the memory can give."""
    plain = speed_of("70b", M4_MAX_128)
    kept = calibrate(
        speed_of("8b", M4_MAX_128),
        decode_tokens_per_s=decode,
        context_tokens=tokens,
        prefill_tokens_per_s=prefill,
        prompt_tokens=tokens,
    )
    speed = speed_of("70b", M4_MAX_128, calibration=kept)

    assert plain.decode_tokens_per_s(0) / 5.01 <= speed.decode_tokens_per_s(0) <= 546e9 / 39.0e9
    assert (
        plain.prefill_tokens_per_s(4096) / 5.01
        <= speed.prefill_tokens_per_s(4096)
        < 1.7 * plain.prefill_tokens_per_s(4096)
    )


@pytest.mark.parametrize("ratio", [math.nan, math.inf, -math.inf, 0.0, -3.0, 1e300])
def test_a_damaged_calibration_does_not_make_the_forecast_absurd(ratio):
    """What a file of measurements says is kept within what can be true, too."""
    plain, speed = speed_of("8b", M4_MAX_128), speed_of("8b", M4_MAX_128, calibration=Calibration(ratio, ratio))

    assert 0.19 < speed.decode_tokens_per_s(4096) / plain.decode_tokens_per_s(4096) < 1.7
    assert 0.19 < speed.prefill_tokens_per_s(4096) / plain.prefill_tokens_per_s(4096) < 1.7


def test_a_calibrated_forecast_repeats_what_was_measured():
    """After a run at half the speed the same run is forecast as it was, and calibrating again changes nothing."""
    plain = speed_of("8b", M4_MAX_128)
    run = {
        "decode_tokens_per_s": plain.decode_tokens_per_s(3000) / 2,
        "context_tokens": 3000,
        "prefill_tokens_per_s": plain.prefill_tokens_per_s(2048) / 1.5,
        "prompt_tokens": 2048,
    }

    kept = calibrate(plain, **run)
    speed = speed_of("8b", M4_MAX_128, calibration=kept)

    assert kept == pytest.approx(Calibration(2, 1.5), rel=0.01)
    assert speed.basis == "calibrated"
    assert speed.decode_tokens_per_s(3000) == pytest.approx(run["decode_tokens_per_s"])
    assert speed.prefill_tokens_per_s(2048) == pytest.approx(run["prefill_tokens_per_s"], rel=0.01)
    assert calibrate(speed, **run) == pytest.approx(kept, rel=0.01)


def test_a_short_prompt_tells_nothing_of_prefill():
    """Twenty tokens read after the first start of a model leave the forecast for prompts as it was."""
    speed = speed_of("8b", M4_MAX_128)

    kept = calibrate(speed, decode_tokens_per_s=50, context_tokens=300, prefill_tokens_per_s=15, prompt_tokens=20)

    assert kept.prefill_ratio == 1
    assert kept.decode_ratio > 1
