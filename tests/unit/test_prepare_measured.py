"""What this computer's own runs teach the next plans."""

import json
from dataclasses import replace

import pytest

from r1mac.catalog.models import find
from r1mac.engine.events import GenerationStats
from r1mac.machine.fake import LINUX_64, M3_ULTRA_512, M4_MAX_128
from r1mac.plan.memory import Quantization, kv_cache_bytes, prefill_scratch_bytes, weight_bytes
from r1mac.prepare.measured import Measured, learn, load_measured, save_measured
from r1mac.prepare.planning import Judgement, judge_wish
from r1mac.prepare.target import Target
from r1mac.prepare.wish import Weights, Wish

NOTHING = Measured()


def judged(name: str, hardware, measured: Measured = NOTHING) -> Judgement:
    spec = find(name)
    assert spec is not None
    stored = weight_bytes(spec.arch, Quantization(bits=4))
    target = Target(title=spec.title, spec=spec, bits=4)
    return judge_wish(Wish(target=target, arch=spec.arch, weights=Weights(stored)), hardware, measured)


def run_of(judgement: Judgement, *, prompt_tokens=4096, generated_tokens=400, slower=1.0, scratch=1.0, cached=0):
    """Return the statistics of a run that was *slower* than forecast and took *scratch* times the formula's."""
    arch, plan, speed = judgement.wish.arch, judgement.plan, judgement.speed
    assert speed is not None
    context = prompt_tokens + generated_tokens // 2
    formula = prefill_scratch_bytes(
        arch, step_tokens=plan.prefill_step_tokens, context_tokens=prompt_tokens, fused_attention=True
    )
    return GenerationStats(
        prompt_tokens=prompt_tokens,
        cached_tokens=cached,
        generated_tokens=generated_tokens,
        think_tokens=0,
        prefill_seconds=slower * speed.prefill_seconds(prompt_tokens),
        decode_seconds=slower * (generated_tokens - 1) / speed.decode_tokens_per_s(context),
        prefill_peak_bytes=round(plan.weight_bytes + kv_cache_bytes(arch, prompt_tokens) + scratch * formula),
        peak_bytes=0,
    )


def after(judgement: Judgement, stats, known: Measured = NOTHING) -> Measured:
    return learn(known, judgement.wish.arch, judgement.hardware, judgement.plan, judgement.speed, stats)


@pytest.mark.parametrize("name", ["671b", "70b"])
def test_a_run_that_took_more_scratch_makes_the_next_plan_careful(name):
    first = judged(name, M3_ULTRA_512)
    known = after(first, run_of(first, scratch=1.5))
    second = judged(name, M3_ULTRA_512, known)
    assert known.scratch_factor(first.wish.arch) == pytest.approx(1.5, rel=1e-3)
    assert second.plan.prefill_step_tokens <= first.plan.prefill_step_tokens
    if second.plan.prefill_step_tokens == first.plan.prefill_step_tokens:
        assert second.plan.prefill_scratch_bytes == pytest.approx(1.5 * first.plan.prefill_scratch_bytes, rel=1e-3)


def test_a_slower_run_makes_the_next_forecast_slower():
    first = judged("32b", M4_MAX_128)
    assert first.speed is not None
    second = judged("32b", M4_MAX_128, after(first, run_of(first, slower=1.4)))
    assert second.speed is not None
    assert second.speed.basis == "calibrated"
    assert second.speed.decode_tokens_per_s(4000) == pytest.approx(
        first.speed.decode_tokens_per_s(4000) / 1.4, rel=0.05
    )


def test_a_short_run_teaches_nothing():
    first = judged("1.5b", M4_MAX_128)
    assert after(first, run_of(first, prompt_tokens=20, generated_tokens=10, slower=3.0, scratch=2.0)) == Measured()


def test_a_prompt_from_the_cache_teaches_nothing_of_prefill():
    first = judged("70b", M4_MAX_128)
    known = after(first, run_of(first, slower=1.4, scratch=2.0, cached=4000))
    assert known.scratch_factors == {}
    assert known.calibration is not None
    assert known.calibration.prefill_ratio == 1.0


def test_nonsense_is_clamped():
    first = judged("70b", M4_MAX_128)
    assert after(first, run_of(first, scratch=50)).scratch_factor(first.wish.arch) == 3.0


def test_what_is_learned_is_kept_for_that_computer_only(tmp_path):
    path = tmp_path / "measured.json"
    first = judged("70b", M4_MAX_128)
    known = after(first, run_of(first, slower=1.2, scratch=1.3))
    save_measured(M4_MAX_128, known, path)
    assert load_measured(M4_MAX_128, path).scratch_factors == known.scratch_factors
    assert load_measured(M4_MAX_128, path).calibration == pytest.approx(known.calibration)
    assert load_measured(M3_ULTRA_512, path) == Measured()
    assert load_measured(LINUX_64, path) == Measured()
    save_measured(M3_ULTRA_512, Measured(scratch_factors={"llama": 1.1}), path)
    assert load_measured(M4_MAX_128, path).scratch_factors == known.scratch_factors


@pytest.mark.parametrize("text", ["", "{", "[]", '{"%s": 3}', '{"%s": {"speed": [1], "scratch_factors": 2}}'])
def test_a_damaged_file_is_as_good_as_none(tmp_path, text):
    path = tmp_path / "measured.json"
    save_measured(M4_MAX_128, Measured(), path)
    (key,) = json.loads(path.read_text())
    path.write_text(text.replace("%s", key))
    assert load_measured(M4_MAX_128, path) == Measured()


@pytest.mark.parametrize("data", [b"\xff\xfe{", b"[" * 100_000])
def test_bytes_that_are_no_text_are_as_good_as_none(tmp_path, data):
    path = tmp_path / "measured.json"
    path.write_bytes(data)
    assert load_measured(M4_MAX_128, path) == Measured()


def test_a_factor_that_is_no_number_is_none(tmp_path):
    path = tmp_path / "measured.json"
    save_measured(M4_MAX_128, Measured(scratch_factors={"llama": float("nan")}), path)
    assert load_measured(M4_MAX_128, path).scratch_factors == {"llama": 1.0}


def test_a_disk_that_takes_nothing_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    save_measured(M4_MAX_128, Measured(), tmp_path / "file" / "measured.json")


def test_a_run_with_drafts_teaches_nothing_of_speed():
    """Drafted tokens that came true are not the model's pace, and a larger peak beside a draft model is not its own."""
    first = judged("32b", M4_MAX_128)
    stats = run_of(first, slower=0.5)
    drafted = replace(stats, accepted_draft_tokens=200)
    beside = first._replace(plan=replace(first.plan, draft_bytes=10**9))

    assert after(first, drafted).calibration is None
    assert after(first, stats).calibration is not None
    assert not after(beside, run_of(first, scratch=2.0)).scratch_factors


def test_a_resumed_reply_counts_what_was_written_here():
    """What an earlier process wrote took none of this one's time."""
    first = judged("32b", M4_MAX_128)

    assert after(first, replace(run_of(first), earlier_tokens=380)).calibration is None
