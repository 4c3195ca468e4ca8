"""The policy of tune: which limit is proposed, which never is, and what gives way when memory is short."""

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1mac.catalog.models import find
from r1mac.machine.base import HardwareProfile
from r1mac.machine.fake import (
    M1_8,
    M2_MAX_96,
    M3_MAX_36,
    M3_MAX_36_MACOS15,
    M3_ULTRA_512,
    M4_16,
    M4_MAX_128,
    M4_PRO_48,
    M5_PRO_64,
    M5_ULTRA_256,
    M6_32_MACOS27,
    mac,
)
from r1mac.plan.fit import fit
from r1mac.plan.memory import Quantization, weight_bytes
from r1mac.plan.tune import Tuning, choose, default_reserve_bytes, limits_of
from r1mac.units import GIB, MIB

MODELS = ("1.5b", "8b", "14b", "32b", "70b", "671b")
SMALL = (M1_8, M4_16, M3_MAX_36, M6_32_MACOS27)
LARGE = (M4_PRO_48, M5_PRO_64, M2_MAX_96, M4_MAX_128, M5_ULTRA_256, M3_ULTRA_512)
SOLD_GIB = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)


@cache
def stored_bytes(model: str, bits: int) -> int:
    return weight_bytes(find(model).arch, Quantization(bits=bits))


def tune(model: str, hardware: HardwareProfile, *, bits: int = 4, **wishes: int) -> Tuning:
    return choose(find(model).arch, hardware, stored_bytes=stored_bytes(model, bits), **wishes)


def with_limit(hardware: HardwareProfile, mib: int) -> HardwareProfile:
    return replace(hardware, wired_limit_bytes=mib * MIB, wired_limit_source="override")


def fits_under(model: str, hardware: HardwareProfile, tuning: Tuning, limit_bytes: int, *, bits: int = 4) -> bool:
    plan = fit(
        find(model).arch,
        replace(hardware, wired_limit_bytes=limit_bytes),
        stored_bytes=stored_bytes(model, bits),
        context_tokens=tuning.context_tokens,
        kv_bits=tuning.kv_bits,
    )
    return plan.fits and plan.prefill_step_tokens >= min(512, tuning.prefill_step_tokens)


# The limit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory_gib", "reserve_gib"),
    [(16, 8), (32, 8), (64, 8), (80, 8), (96, 8.8), (128, 10.4), (192, 13.6), (256, 16.8), (512, 29.6)],
)
def test_the_reserve_grows_with_the_memory(memory_gib, reserve_gib):
    """macOS keeps 8 GiB, and from 80 GiB on a twentieth and 4 GiB."""
    assert default_reserve_bytes(memory_gib * GIB) == int(reserve_gib * GIB)


@pytest.mark.parametrize(
    ("hardware", "highest_mib"),
    [
        (M1_8, 0),
        (M4_16, 0),
        (M6_32_MACOS27, 0),  # the default leaves less than 8 GiB already
        (M3_MAX_36, 0),
        (M3_MAX_36_MACOS15, 28 * 1024),
        (M4_PRO_48, 40 * 1024),
        (M5_PRO_64, 56 * 1024),
        (M2_MAX_96, 89292),
        (M4_MAX_128, 120422),
        (M5_ULTRA_256, 244940),
        (M3_ULTRA_512, 493977),
    ],
)
def test_the_highest_limit_of_each_mac(hardware, highest_mib):
    """The highest limit is the memory less the reserve, and none where that is no more than the default."""
    assert limits_of(hardware).highest_mib == highest_mib


def test_a_model_that_fits_the_default_changes_nothing():
    """Where macOS's own limit suffices it is left alone, whatever the model could use."""
    for model, hardware in [("8b", M5_PRO_64), ("32b", M4_PRO_48), ("70b", M4_MAX_128), ("671b", M3_ULTRA_512)]:
        assert tune(model, hardware).wired_limit_mib is None


def test_the_limit_is_the_least_gib_that_suffices():
    """The 70B on 64 GB gets 53 GiB: with 52 its prompt would be read in small steps or not fit."""
    tuning = tune("70b", M5_PRO_64)

    assert tuning.wired_limit_mib == 53 * 1024
    assert tuning.plan.fits
    assert (tuning.context_tokens, tuning.kv_bits, tuning.prefill_step_tokens) == (32768, 16, 2048)
    assert not fits_under("70b", M5_PRO_64, tuning, 52 * GIB)
    assert any("53.0 GiB" in reason or "54272 MiB" in reason for reason in tuning.reasons)


def test_the_highest_limit_need_not_be_a_whole_gib():
    """A model that needs all, and shortens its context for it, is given the highest limit itself."""
    tuning = tune("70b", M2_MAX_96, bits=8)

    assert tuning.wired_limit_mib == limits_of(M2_MAX_96).highest_mib == 89292
    assert 8192 <= tuning.context_tokens < 32768


@pytest.mark.parametrize("hardware", [M1_8, M4_16])
@pytest.mark.parametrize("model", MODELS)
def test_with_16_gb_or_less_the_limit_is_never_raised(model, hardware):
    """Not even for a model that is a little too large, and not with an explicit reserve."""
    for reserve_bytes in (None, 4 * GIB):
        assert tune(model, hardware, reserve_bytes=reserve_bytes).wired_limit_mib is None
        assert tune(model, hardware, context_tokens=65_536, reserve_bytes=reserve_bytes).wired_limit_mib is None


def test_a_smaller_reserve_is_taken_when_it_is_said():
    """With --reserve 6gb a 36 GB Mac may be raised, which r1mac does not do by itself."""
    assert tune("32b", M3_MAX_36).wired_limit_mib is None
    assert tune("32b", M3_MAX_36, reserve_bytes=6 * GIB).wired_limit_mib == 29 * 1024


def test_no_reserve_goes_below_4_gib():
    """A reserve of nothing is a reserve of 4 GiB."""
    assert limits_of(M5_PRO_64, reserve_bytes=0).highest_mib == 60 * 1024


# A limit that is there already --------------------------------------------------------------------


def test_a_limit_that_suffices_is_kept():
    """What somebody set is not touched while it is enough, also where it is more than r1mac would set."""
    for mib in (53 * 1024, 56 * 1024, 60 * 1024):
        assert tune("70b", with_limit(M5_PRO_64, mib)).wired_limit_mib is None


def test_a_limit_that_does_not_suffice_is_raised():
    """A limit above the default, but too low for the model, becomes the least that suffices."""
    assert tune("70b", with_limit(M5_PRO_64, 52 * 1024 + 100)).wired_limit_mib == 53 * 1024


def test_a_limit_below_the_default_goes_back_to_it():
    """A limit that somebody lowered is lifted where it is in the way, and no further than macOS's own."""
    lowered = with_limit(M5_PRO_64, 20 * 1024)

    assert tune("8b", lowered).wired_limit_mib is None
    assert tune("32b", lowered).wired_limit_mib == 0
    assert tune("32b", lowered).plan.fits


def test_a_users_own_higher_limit_may_be_used():
    """A model that needs more than r1mac would set runs under the limit that its user chose."""
    own = with_limit(M5_PRO_64, 60 * 1024)
    tuning = tune("70b", own, context_tokens=49_152)

    assert tuning.wired_limit_mib is None
    assert tuning.plan.fits
    assert tuning.kv_bits == 16
    assert tune("70b", M5_PRO_64, context_tokens=49_152).kv_bits == 8


def test_a_limit_that_starves_macos_is_warned_of_and_replaced():
    """Above the memory less 4 GiB a Mac may freeze: the proposal is what the model needs, and the reasons say why."""
    starving = with_limit(M5_PRO_64, 64 * 1024)

    assert tune("70b", starving).wired_limit_mib == 53 * 1024
    assert tune("8b", starving).wired_limit_mib == 0
    assert "may freeze" in tune("8b", starving).reasons[0]


@pytest.mark.parametrize("mib", [60 * 1024 + 1, 1_000_000])
def test_a_limit_that_starves_macos_goes_also_where_nothing_fits(mib):
    """A model that no limit helps is no reason to leave a dangerous one."""
    tuning = tune("671b", with_limit(M5_PRO_64, mib))

    assert (tuning.plan.fits, tuning.wired_limit_mib) == (False, 0)
    assert "may freeze" in tuning.reasons[0]
    assert tune("671b", with_limit(M5_PRO_64, 60 * 1024)).wired_limit_mib is None


def test_a_limit_that_breaks_the_reserve_that_was_asked_for_does_not_stay():
    """--reserve 10gb on a 64 GB Mac whose limit leaves 4: the limit goes down, whether the model needs it or not."""
    own, reserve_bytes = with_limit(M5_PRO_64, 60 * 1024), 10 * GIB

    assert tune("70b", own, reserve_bytes=reserve_bytes).wired_limit_mib == 53 * 1024
    assert tune("8b", own, reserve_bytes=reserve_bytes).wired_limit_mib == 0
    assert tune("671b", own, reserve_bytes=reserve_bytes).wired_limit_mib == 0
    assert "leaves macOS 4.0 GiB, less than the reserve" in tune("8b", own, reserve_bytes=reserve_bytes).reasons[0]
    assert tune("8b", with_limit(M5_PRO_64, 54 * 1024), reserve_bytes=reserve_bytes).wired_limit_mib is None


def test_a_limit_that_is_raised_for_speed_says_so():
    """The 32B with 28,672 tokens fits 36 GB with a short prefill step; what a long one needs is told beside it."""
    tuning = tune("32b", M3_MAX_36_MACOS15, context_tokens=28_672)
    now = fit(
        find("32b").arch, M3_MAX_36_MACOS15, stored_bytes=stored_bytes("32b", 4), context_tokens=28_672,
        kv_bits=tuning.kv_bits,
    )  # fmt: skip
    (reason,) = (reason for reason in tuning.reasons if "macOS's own limit of" in reason)

    assert now.fits
    assert now.prefill_step_tokens < 512 <= tuning.prefill_step_tokens
    assert reason.startswith("it fits macOS's own limit of 27.0 GiB")
    assert f"with a prefill step of {now.prefill_step_tokens}; one of {tuning.prefill_step_tokens}, which" in reason


# What gives way -----------------------------------------------------------------------------------


def test_the_context_gives_way_first():
    """Where 32,768 tokens do not fit under the highest limit, the context shrinks and the cache stays whole."""
    tuning = tune("32b", M6_32_MACOS27)

    assert tuning.plan.fits
    assert 8192 <= tuning.context_tokens < 32768
    assert tuning.kv_bits == 16
    assert tuning.prefill_step_tokens >= 512
    assert any("instead of 32768" in reason for reason in tuning.reasons)


def test_then_the_cache_is_quantised():
    """A context too short for a thought is not offered while a narrower cache gives a longer one."""
    tuning = tune("8b", M1_8)

    assert tuning.plan.fits
    assert tuning.kv_bits < 16
    assert tuning.context_tokens >= 8192


def test_a_context_that_was_asked_for_is_never_shortened():
    """The cache is quantised for it instead."""
    tuning = tune("70b", M5_PRO_64, context_tokens=65_536)

    assert tuning.plan.fits
    assert (tuning.context_tokens, tuning.kv_bits) == (65_536, 8)


def test_a_cache_that_was_asked_for_is_never_narrowed():
    """The context gives way for it, or nothing fits."""
    assert tune("70b", M5_PRO_64, kv_bits=16, context_tokens=65_536).plan.fits is False
    assert tune("8b", M1_8, kv_bits=8).kv_bits == 8


@pytest.mark.parametrize("hardware", [*SMALL, M4_PRO_48, M5_PRO_64, M5_ULTRA_256])
def test_what_cannot_fit_is_left_alone(hardware):
    """A model that no limit makes fit is no reason to change one; the numbers are told."""
    tuning = tune("671b", hardware)

    assert (tuning.plan.fits, tuning.wired_limit_mib) == (False, None)
    assert "no limit would help" in tuning.reasons[-1]


# Properties ---------------------------------------------------------------------------------------

MEMORIES = st.one_of(st.sampled_from(SOLD_GIB), st.integers(8, 768))
MACOS = st.sampled_from(["14.5", "15.7.7", "26.1", "27.0.1"])


@settings(deadline=None)
@given(
    memory_gib=MEMORIES,
    macos=MACOS,
    model=st.sampled_from(MODELS),
    bits=st.sampled_from([2, 3, 4, 6, 8, 16]),
    context_tokens=st.none() | st.integers(256, 131_072),
    kv_bits=st.sampled_from([None, 16, 8, 4]),
    reserve_gib=st.none() | st.floats(0, 600),
    set_gib=st.just(0) | st.integers(1, 800),
)
def test_no_proposal_is_dangerous(memory_gib, macos, model, bits, context_tokens, kv_bits, reserve_gib, set_gib):
    """Whatever is asked for on whatever Mac: no limit above the memory less the reserve, or below the default.

    And the plan under the proposed limit fits, or nothing is proposed but macOS's own instead of one that may not stay.
    """
    hardware = mac("Apple M5 Max", memory_gib=memory_gib, macos=macos, wired_limit_mib=set_gib * 1024)
    reserve = None if reserve_gib is None else int(reserve_gib * GIB)
    limits = limits_of(hardware, reserve_bytes=reserve)
    tuning = tune(model, hardware, bits=bits, context_tokens=context_tokens, kv_bits=kv_bits, reserve_bytes=reserve)

    assert tuning.wired_limit_mib is not None or not limits.must_change
    if tuning.wired_limit_mib is None:
        if tuning.plan.fits:
            assert tuning.plan.limit_bytes == hardware.wired_limit_bytes
            assert tuning.plan.limit_bytes <= max(limits.bearable_mib * MIB, limits.default_bytes)
        return
    if not tuning.plan.fits:
        assert (tuning.wired_limit_mib, limits.must_change) == (0, True)
        return
    if tuning.wired_limit_mib == 0:
        assert tuning.plan.limit_bytes == limits.default_bytes
        return
    limit_bytes = tuning.wired_limit_mib * MIB
    own = limits.usable_set_mib
    assert limit_bytes > limits.default_bytes
    assert limit_bytes <= memory_gib * GIB - 4 * GIB
    assert tuning.wired_limit_mib <= max(limits.highest_mib, own)
    assert memory_gib > 16
    assert tuning.plan.limit_bytes == limit_bytes
    if context_tokens is not None:
        assert tuning.context_tokens == context_tokens
    if kv_bits is not None:
        assert tuning.kv_bits == kv_bits


@given(smaller=MEMORIES, larger=MEMORIES, macos=MACOS)
def test_more_memory_never_means_a_lower_highest_limit(smaller, larger, macos):
    """What the GPU may be given at most, by macOS or by r1mac, does not shrink as memory grows."""
    most = []
    for memory_gib in sorted((smaller, larger)):
        limits = limits_of(mac("Apple M5 Max", memory_gib=memory_gib, macos=macos))
        most.append(max(limits.default_bytes, limits.highest_mib * MIB))

    assert most[0] <= most[1]


@settings(deadline=None)
@given(hardware=st.sampled_from(LARGE), model=st.sampled_from(MODELS), context=st.none() | st.integers(256, 65_536))
def test_what_was_applied_is_not_proposed_again(hardware, model, context):
    """After the proposal is carried out, the same question changes nothing more."""
    first = tune(model, hardware, context_tokens=context)
    applied = with_limit(hardware, first.wired_limit_mib) if first.wired_limit_mib else hardware
    second = tune(model, applied, context_tokens=context)

    assert second.wired_limit_mib is None
    assert second.plan == first.plan
