"""Plans: what fits where, with how much context, and what is said where it does not."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.catalog.arch import ArchSpec
from r1mac.catalog.models import all_models, find
from r1mac.machine.base import HardwareProfile
from r1mac.machine.fake import LINUX_64, M1_8, M2_ULTRA_192, M3_ULTRA_512, M4_PRO_48, M6_32_MACOS27, mac, other
from r1mac.plan.compute import Compute
from r1mac.plan.fit import DEFAULT_CONTEXT_TOKENS, MIN_CONTEXT_TOKENS, MemoryPlan, fit
from r1mac.plan.memory import Quantization, kv_cache_bytes, prefill_scratch_bytes, weight_bytes
from r1mac.units import GIB

KEYS = [model.key for model in all_models()]


def arch_of(name: str) -> ArchSpec:
    """Return the shape of a model of the catalog."""
    model = find(name)
    assert model is not None
    return model.arch


def plan_of(name: str, hardware: HardwareProfile, *, bits: int = 4, context_tokens: int | None = None) -> MemoryPlan:
    """Plan a model of the catalog at *bits*."""
    arch = arch_of(name)
    stored_bytes = weight_bytes(arch, Quantization(bits=bits))
    return fit(arch, hardware, stored_bytes=stored_bytes, context_tokens=context_tokens)


def with_limit(limit_bytes: int, *, system: str = "macos") -> HardwareProfile:
    """Return a computer whose only interesting number is its limit."""
    return replace(M2_ULTRA_192 if system == "macos" else LINUX_64, wired_limit_bytes=limit_bytes)


@pytest.mark.parametrize(
    ("name", "bits", "hardware", "fits"),
    [
        ("671b", 4, M3_ULTRA_512, True),
        ("671b", 6, M3_ULTRA_512, False),
        ("671b", 4, M2_ULTRA_192, False),
        ("70b", 4, M2_ULTRA_192, True),
        ("70b", 8, M2_ULTRA_192, True),
        ("70b", 16, M2_ULTRA_192, True),  # 141 GB of 156
        ("70b", 4, M4_PRO_48, False),  # 39.7 GB of 36.2
        ("70b", 3, M4_PRO_48, True),  # 30.9 GB of 36.2
        ("70b", 4, M6_32_MACOS27, False),
        ("32b", 4, M6_32_MACOS27, True),
        ("1.5b", 4, M1_8, True),
        ("8b", 4, M1_8, True),  # 4.6 GB of 5.15, with 3328 tokens
        ("14b", 4, M1_8, False),
        ("1.5b", 16, M1_8, True),
        ("70b", 4, LINUX_64, True),
        ("671b", 4, LINUX_64, False),
    ],
)
def test_who_runs_what(name, bits, hardware, fits):
    """The family's members fit the machines that people run them on, and no others."""
    assert plan_of(name, hardware, bits=bits).fits == fits


def test_the_671b_on_512_gb_is_planned_term_by_term():
    """On an M3 Ultra with 512 GB every term of the 4-bit 671B's plan is the sum done by hand."""
    plan = plan_of("671b", M3_ULTRA_512)

    # The routers of 58 layers, 256 experts x 7168, are widened to float32 when they are loaded.
    assert plan.weight_bytes == 377_606_822_912 + 29_696 + 58 * 256 * 7168 * 2
    assert plan.kv_bytes_per_token == 70_272
    assert plan.context_tokens == DEFAULT_CONTEXT_TOKENS
    assert plan.kv_cache_bytes == 32_768 * 70_272
    assert plan.limit_bytes == 464 * GIB  # 512 - 48
    assert plan.reserve_bytes == 464 * GIB // 10
    assert plan.budget_bytes == plan.limit_bytes - plan.reserve_bytes
    assert plan.compute is Compute.AS_STORED
    assert plan.total_bytes == plan.weight_bytes + plan.kv_cache_bytes + plan.prefill_scratch_bytes


def test_the_prefill_step_shrinks_until_the_plan_fits():
    """The step is the longest that the budget holds: twice as long would not fit."""
    plan = plan_of("7b", M1_8, context_tokens=8192)
    doubled = prefill_scratch_bytes(
        arch_of("7b"), step_tokens=2 * plan.prefill_step_tokens, context_tokens=8192, fused_attention=True
    )

    assert plan.fits
    assert 64 <= plan.prefill_step_tokens < 2048
    assert plan.weight_bytes + plan.kv_cache_bytes + doubled > plan.budget_bytes


def test_the_671b_reads_its_whole_context_in_the_longest_steps():
    """What latent attention holds does not grow with the context: all 163,840 tokens fit 512 GB beside steps of 2048."""
    plan = plan_of("671b", M3_ULTRA_512, context_tokens=163_840)

    assert plan.fits
    assert plan.prefill_step_tokens == 2048


def test_a_small_model_reads_its_prompt_in_the_longest_steps():
    """Where memory is plenty, the prompt is read 2048 tokens at a time on a GPU and 256 on a CPU."""
    assert plan_of("1.5b", M2_ULTRA_192).prefill_step_tokens == 2048
    assert plan_of("1.5b", LINUX_64).prefill_step_tokens == 256


@pytest.mark.parametrize("name", ["demo", "8b", "70b"])
def test_a_cpu_plans_float32(name):
    """Off a Mac cache and weights are planned in float32, and attention with its score matrix."""
    plan = plan_of(name, LINUX_64)
    arch = arch_of(name)
    on_a_mac = plan_of(name, M2_ULTRA_192)

    assert plan.compute in {Compute.FLOAT32, Compute.DEQUANTIZED}
    assert plan.kv_bytes_per_token == 2 * on_a_mac.kv_bytes_per_token
    assert plan.kv_cache_bytes == kv_cache_bytes(arch, plan.context_tokens, value_bytes=4)
    assert plan.prefill_scratch_bytes == prefill_scratch_bytes(
        arch,
        step_tokens=plan.prefill_step_tokens,
        context_tokens=plan.context_tokens,
        fused_attention=False,
        value_bytes=4,
        quantized_weights=plan.compute is Compute.FLOAT32,
    )
    assert plan.weight_bytes > on_a_mac.weight_bytes


def test_without_a_wish_the_context_is_32768_or_what_the_model_knows():
    """With memory to spare the default context is taken, and the whole of a shorter model's."""
    assert plan_of("70b", M3_ULTRA_512).context_tokens == 32_768
    assert plan_of("demo", M3_ULTRA_512).context_tokens == 8192


def test_without_a_wish_the_context_shrinks_to_what_fits():
    """Where 32768 tokens do not fit but a useful number does, that number is planned."""
    plan = plan_of("32b", mac("Apple M1", memory_gib=32))

    assert plan.fits
    assert MIN_CONTEXT_TOKENS <= plan.context_tokens == plan.max_context_tokens < DEFAULT_CONTEXT_TOKENS


def test_an_asked_context_is_not_shortened():
    """What was asked for is planned, also where it does not fit."""
    plan = plan_of("32b", mac("Apple M1", memory_gib=32), context_tokens=131_072)

    assert plan.context_tokens == 131_072
    assert not plan.fits


def test_weights_that_do_not_fit_leave_no_context():
    """A model larger than the machine has a longest context of 0."""
    assert plan_of("70b", M6_32_MACOS27).max_context_tokens == 0


LIMITS = st.integers(GIB, 600 * GIB)
SYSTEMS = st.sampled_from(["macos", "other"])
BITS = st.sampled_from([2, 3, 4, 6, 8, 16])


@given(name=st.sampled_from(KEYS), bits=BITS, limit=LIMITS, more=LIMITS | st.integers(0, 40 * GIB), system=SYSTEMS)
def test_more_memory_never_means_less_context(name, bits, limit, more, system):
    """A larger limit never shortens the longest context, and never turns a plan that fits into one that does not."""
    small = plan_of(name, with_limit(limit, system=system), bits=bits)
    large = plan_of(name, with_limit(limit + more, system=system), bits=bits)

    assert large.max_context_tokens >= small.max_context_tokens
    if small.fits:
        assert large.fits
        assert large.context_tokens >= small.context_tokens
        if large.compute is small.compute and large.context_tokens == small.context_tokens:
            assert large.prefill_step_tokens >= small.prefill_step_tokens


@given(name=st.sampled_from(KEYS), bits=BITS, limit=LIMITS, system=SYSTEMS, context=st.integers(1, 200_000) | st.none())
def test_fits_is_what_the_numbers_say(name, bits, limit, system, context):
    """The verdict follows from the plan's own terms, and agrees with the longest context."""
    plan = plan_of(name, with_limit(limit, system=system), bits=bits, context_tokens=context)

    assert plan.fits == (plan.total_bytes <= plan.limit_bytes - plan.reserve_bytes)
    assert plan.total_bytes == plan.weight_bytes + plan.kv_cache_bytes + plan.prefill_scratch_bytes
    assert 0 <= plan.max_context_tokens <= arch_of(name).max_context_tokens
    assert plan.fits or plan.context_tokens > plan.max_context_tokens
    if plan.fits and plan.context_tokens <= arch_of(name).max_context_tokens:
        assert plan.context_tokens < plan.max_context_tokens + 256


@given(name=st.sampled_from(KEYS), bits=BITS, limit=LIMITS, system=SYSTEMS)
def test_the_longest_context_fits_and_a_longer_one_does_not(name, bits, limit, system):
    """The longest context is exact: asked for, it fits, and one block more does not."""
    hardware = with_limit(limit, system=system)
    longest = plan_of(name, hardware, bits=bits).max_context_tokens
    known = arch_of(name).max_context_tokens

    assert longest == 0 or plan_of(name, hardware, bits=bits, context_tokens=longest).fits
    assert longest == known or not plan_of(name, hardware, bits=bits, context_tokens=longest + 256).fits


@given(
    name=st.sampled_from(KEYS),
    limit=LIMITS,
    system=SYSTEMS,
    context=st.integers(1, 150_000),
    more=st.integers(1, 150_000),
)
def test_a_longer_context_never_needs_less(name, limit, system, context, more):
    """The cache never shrinks, nor does the total at the same step; what fits with more fits with less.

    The total itself may fall where a longer context makes the prefill step shorter.
    """
    hardware = with_limit(limit, system=system)
    short = plan_of(name, hardware, context_tokens=context)
    long = plan_of(name, hardware, context_tokens=context + more)

    assert long.kv_cache_bytes >= short.kv_cache_bytes
    assert long.prefill_step_tokens <= short.prefill_step_tokens
    if long.prefill_step_tokens == short.prefill_step_tokens:
        assert long.total_bytes >= short.total_bytes
    assert short.fits or not long.fits


@given(
    name=st.sampled_from(KEYS), memory_gib=st.integers(2, 80), more=st.integers(1, 80), context=st.integers(1, 150_000)
)
def test_a_cpu_with_more_memory_still_runs_what_it_ran(name, memory_gib, more, context):
    """Dequantising, which a CPU with more memory chooses, never costs it a context that it had."""
    small, large = other(memory_gib=memory_gib), other(memory_gib=memory_gib + more)

    assert not plan_of(name, small, context_tokens=context).fits or plan_of(name, large, context_tokens=context).fits


@pytest.mark.parametrize(
    ("context_tokens", "compute"),
    [(32_768, Compute.DEQUANTIZED), (120_000, Compute.FLOAT32), (None, Compute.DEQUANTIZED)],
)
def test_a_long_context_goes_before_dequantising(context_tokens, compute):
    """The 1.5B on a CPU with 16 GiB is dequantised, unless the context asked for needs that room.

    Of 13.5 GB the weights take 7.1 in float32; 120,000 tokens take 6.9.
    """
    plan = plan_of("1.5b", other(memory_gib=16), context_tokens=context_tokens)

    assert plan.fits
    assert plan.compute is compute


@pytest.mark.parametrize("limit_gib", [62, 64, 1000])
def test_a_limit_above_what_macos_can_bear_is_not_planned_with(limit_gib):
    """The kernel takes any number for its limit; memory that is not there is in no plan."""
    hardware = mac("Apple M5 Pro", memory_gib=64, wired_limit_mib=limit_gib * 1024)
    plan = plan_of("70b", hardware, bits=8)

    assert plan.limit_bytes == 60 * GIB
    assert not plan.fits
