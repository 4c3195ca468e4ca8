"""What is said of a run that did not end, and the plan that is proposed."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.machine.readings import Boot, Panic
from r1mac.prepare.black_box import RunRecord
from r1mac.prepare.unfinished import Unfinished, judge, lower_plan
from r1mac.units import GIB

HERE = Path("x.json")
THEN, NOW = Boot(session="A", started_at_s=1000), Boot(session="B", started_at_s=9000)


def record(**changes: object) -> RunRecord:
    """Return the record of a 70B with 10 GiB of cache, with what differs."""
    values: dict[str, object] = {
        "model": "70b",
        "bits": None,
        "title": "R1-Distill-Llama-70B at 4 bits",
        "total_bytes": 50 * GIB,
        "weight_bytes": 38 * GIB,
        "kv_cache_bytes": 10 * GIB,
        "kv_bits": 16,
        "context_tokens": 32_768,
        "prefill_step_tokens": 512,
        "limit_bytes": 56 * GIB,
        "phase": "run",
        "pid": 4711,
        "started_at_s": 5000.0,
        "boot_session": THEN.session,
        "boot_started_at_s": THEN.started_at_s,
    }
    return RunRecord(**(values | changes))


def panic(at_s: float, session: str | None = None) -> Panic:
    """Return the report of a crash."""
    return Panic(path=HERE, at_s=at_s, reason="completeMemory() …", cause="gpu", session=session)


@pytest.mark.parametrize(
    ("boot", "panics", "ending"),
    [
        (THEN, (), "killed"),
        (THEN, (panic(6000),), "killed"),  # of the same start: whatever crashed, it was not this computer
        (NOW, (), "restart"),
        (NOW, (panic(9100, "A"),), "panic"),
        (NOW, (panic(9100),), "panic"),  # a report that does not tell its start
        (NOW, (panic(9100, "C"),), "restart"),  # another crash, of a later start
        (NOW, (panic(4000),), "restart"),  # before the run
    ],
)
def test_how_a_run_ended(boot, panics, ending):
    """A dead process, a computer that started again and a crash of all of it are told apart."""
    assert judge(record(), HERE, boot, panics).ending == ending


def test_the_first_crash_after_the_run_is_its_own():
    """Of several crashes the one that followed the run is named."""
    run = judge(record(), HERE, NOW, (panic(9900), panic(9100)))

    assert run.panic is not None
    assert run.panic.at_s == 9100


@pytest.mark.parametrize(
    ("changes", "kv_bits", "context_tokens", "total_gib"),
    [
        # 50 - 10 * 7/16 = 45.625 is more than 45; half the context is 45
        ({}, 16, 16_384, 45.0),
        # 50 - 20 * 7/16
        ({"kv_cache_bytes": 20 * GIB, "weight_bytes": 28 * GIB}, 8, 32_768, 41.25),
        # 50 - 8 * 3/4 = 44; at 8 bits and half the context 50 - 8 + 8 * 9/32 = 44.25 comes first
        ({"kv_cache_bytes": 8 * GIB}, 8, 16_384, 44.25),
        ({"kv_bits": 8}, 8, 16_384, 45.0),
        ({"kv_bits": 4, "kv_cache_bytes": 6 * GIB}, 4, 4096, 44.75),
    ],
)
def test_a_lower_plan(changes, kv_bits, context_tokens, total_gib):
    """The nearest plan is taken that needs a tenth less."""
    lower = lower_plan(record(**changes))

    assert lower is not None
    assert (lower.kv_bits, lower.context_tokens, lower.total_bytes / GIB) == (kv_bits, context_tokens, total_gib)


def test_weights_that_leave_nothing_to_save():
    """Where the cache is a few percent no context helps, and fewer bits or another model are named."""
    run = Unfinished(path=HERE, record=record(kv_cache_bytes=2 * GIB, weight_bytes=46 * GIB), ending="panic")

    assert lower_plan(run.record) is None
    assert "fewer --bits or a smaller model" in run.advice()


@given(st.integers(1, 2**40), st.floats(0.001, 1), st.integers(256, 2**18), st.sampled_from([16, 8, 4]))
def test_a_lower_plan_is_lower(total_bytes, kv_share, context_tokens, kv_bits):
    """A proposal needs a tenth less, asks for no more context or bits, and for enough context to think."""
    run = record(
        total_bytes=total_bytes,
        kv_cache_bytes=max(1, round(total_bytes * kv_share)),
        context_tokens=context_tokens,
        kv_bits=kv_bits,
    )
    lower = lower_plan(run)

    if lower is not None:
        assert 0 <= lower.total_bytes <= 0.9 * total_bytes
        assert 2048 <= lower.context_tokens <= context_tokens
        assert lower.kv_bits <= kv_bits


@pytest.fixture(autouse=True)
def _utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


PLAN = "01 Jan 01:23, with 50.0 GiB planned of 56.0 GiB"


@pytest.mark.parametrize(
    ("ending", "phase", "sentence"),
    [
        ("panic", "run", f"the computer crashed while r1mac ran the 70B (completeMemory() …); started {PLAN}"),
        (
            "restart",
            "load",
            f"the computer started again before the end of an r1mac that was loading the 70B; started {PLAN}",
        ),
        ("killed", "run", f"r1mac was killed or crashed while it ran the 70B; started {PLAN}"),
    ],
)
def test_what_is_said(ending, phase, sentence):
    """One sentence names what happened, the model, when, and the numbers; the advice is a command."""
    run = Unfinished(
        path=HERE,
        record=record(phase=phase, title="the 70B", bits=3),
        ending=ending,
        panic=panic(9100) if ending == "panic" else None,
    )

    assert run.describe() == sentence
    assert run.advice() == "`r1mac run 70b --bits 3 --context 16384` needs about 45.0 GiB"


def test_the_advice_says_each_option_once():
    """What the run was asked for is not repeated before what is advised."""
    cache = {"kv_bits": 8, "context_tokens": 60_000, "kv_cache_bytes": 10 * GIB}
    run = Unfinished(path=HERE, record=record(**cache), ending="killed")

    assert run.advice().startswith("`r1mac run 70b --context 30000 --kv-bits 8` needs")


def test_a_plan_for_little_memory_gets_no_lower_plan():
    """Where memory was hardly the reason, no other plan is advised."""
    small = record(total_bytes=13 * GIB, weight_bytes=2 * GIB)
    run = Unfinished(path=HERE, record=small, ending="killed")

    assert run.needed_little
    assert "memory was hardly the reason" in run.advice()
    assert "r1mac run" not in run.advice()
