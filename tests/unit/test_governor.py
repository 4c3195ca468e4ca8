"""A reply that runs short of memory: it degrades in order and still arrives."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1mac.engine.memory.governor import DropBuffers, Land, NarrowCache, ShortenStep, Stop, Tell
from r1mac.units import GIB, KIB, MIB
from tests.simulated_reply import ANSWER_TOKENS, Model, Simulation, Wish

MODEL = Model()
WISH = Wish()


def kinds(simulation):
    return [type(action).__name__ for action in simulation.actions]


def plan_bytes(model, context_tokens, *, kv_bits=16):
    """What `r1mac plan` would say of it: weights, the whole cache, and the most of a step or a growth's copy."""
    blocks = -(-context_tokens // 256) * 256
    cache = model.kv_bytes_per_token[kv_bits] * blocks
    if kv_bits < 16:
        cache += model.kv_bytes_per_token[16] * 256
    return model.weight_bytes + cache + max(512 * model.scratch_bytes_per_token, cache // model.tensor_count)


def test_a_reply_that_fits_is_left_alone():
    reply = Simulation(MODEL, WISH, ceiling_bytes=plan_bytes(MODEL, 32_768) + GIB)

    assert reply.run() == "answer"
    assert reply.actions == []


@pytest.mark.parametrize("scratch_bytes_per_token", [MIB, 16 * KIB])
def test_a_plan_that_fits_exactly_needs_no_loss(scratch_bytes_per_token):
    """The last block of the context is as good as the first: what is planned for is not given up for fear."""
    model = replace(MODEL, scratch_bytes_per_token=scratch_bytes_per_token)
    wish = replace(WISH, prompt_tokens=2_000, thought_tokens=30_000)
    # A token's own step holds 8 MiB in passing, and MLX keeps some buffers.
    reply = Simulation(model, wish, ceiling_bytes=plan_bytes(model, wish.context_tokens) + 40 * MIB)

    assert reply.run() == "answer"
    assert set(kinds(reply)) <= {"DropBuffers"}


def test_the_ladder_is_gone_down_in_the_order_of_harm():
    wish = replace(WISH, prompt_tokens=2_000, thought_tokens=28_000)
    reply = Simulation(MODEL, wish, ceiling_bytes=MODEL.weight_bytes + GIB)

    assert reply.run() == "answer"
    assert kinds(reply) == ["DropBuffers", "DropBuffers", "NarrowCache", "NarrowCache", "Land"]
    assert [action.kv_bits for action in reply.actions if isinstance(action, NarrowCache)] == [8, 4]
    assert reply.thought_written > 15_000
    assert not reply.passed


@pytest.mark.parametrize("spare_bytes", range(GIB, 2 * GIB, 200 * MIB))
def test_a_landing_leaves_the_whole_room_for_the_answer(spare_bytes):
    wish = replace(WISH, thought_tokens=60_000, answer_tokens=ANSWER_TOKENS, context_tokens=65_536)
    reply = Simulation(MODEL, wish, ceiling_bytes=MODEL.weight_bytes + spare_bytes)

    assert reply.run() == "answer"
    assert kinds(reply)[-1] == "Land"
    assert not reply.passed


def test_the_cache_is_not_requantised_where_that_itself_would_pass_the_ceiling():
    """A tensor's old values and its new codes lie side by side for a moment: 42 MiB here, where 20 are free."""
    model = replace(MODEL, tensor_count=24)

    def inject(reply, reading):
        sunk = reply.active_bytes + 20 * MIB
        return replace(reading, ceiling_bytes=sunk) if reply.written_tokens > 4_000 else reading

    reply = Simulation(model, WISH, ceiling_bytes=8 * GIB, inject=inject)

    assert reply.run() == "checkpoint"
    assert "NarrowCache" not in kinds(reply)
    assert not reply.passed


def test_nothing_is_done_long_before_it_must_be():
    """A thought may end long before the ceiling, so its cache stays wide until the answer would not fit."""
    reply = Simulation(MODEL, replace(WISH, thought_tokens=30_000), ceiling_bytes=MODEL.weight_bytes + 2 * GIB)
    reply.run()

    first = next(action for action in reply.actions if isinstance(action, NarrowCache))
    assert first.kv_bits == 8
    assert first.gain_bytes > 0.75 * GIB


def test_a_long_prompt_is_read_in_shorter_steps():
    wish = replace(WISH, prompt_tokens=8_000, thought_tokens=200, answer_tokens=100, context_tokens=9_000)
    cache = 9_216 * 131_072
    reply = Simulation(MODEL, wish, ceiling_bytes=MODEL.weight_bytes + cache + 200 * MIB)

    assert reply.run() == "answer"
    assert kinds(reply)[0] == "ShortenStep"
    assert not {"NarrowCache", "Land", "Stop"} & set(kinds(reply))
    assert reply.actions[0].step_tokens == 256
    assert not reply.passed


def test_a_step_that_holds_more_than_planned_is_shortened_once():
    """What the longer step held is not taken for what the shorter one will."""

    class Surprising(Simulation):
        def _situation(self):
            return replace(super()._situation(), scratch_bytes=super()._situation().scratch_bytes // 4)

    wish = replace(WISH, prompt_tokens=6_000, thought_tokens=200, answer_tokens=100, context_tokens=7_000)
    reply = Surprising(MODEL, wish, ceiling_bytes=MODEL.weight_bytes + 7_168 * 131_072 + 400 * MIB)

    assert reply.run() == "answer"
    assert [action.step_tokens for action in reply.actions if isinstance(action, ShortenStep)] == [256]
    assert "NarrowCache" not in kinds(reply)


def test_a_prompt_for_which_there_is_no_room_stops_before_it_is_read():
    reply = Simulation(MODEL, replace(WISH, prompt_tokens=20_000), ceiling_bytes=MODEL.weight_bytes + 500 * MIB)

    assert reply.run() == "checkpoint"
    assert reply.prompt_read == 0
    assert "5.0 GiB of 5.5 GiB" in reply.actions[-1].text


def test_the_person_is_told_what_was_given_back():
    reply = Simulation(MODEL, replace(WISH, thought_tokens=30_000), ceiling_bytes=MODEL.weight_bytes + 2 * GIB)
    reply.run()

    texts = [action.text for action in reply.actions if isinstance(action, NarrowCache)]
    assert texts[0].startswith("memory is nearly full: the cache is kept at 8 bits from here, which gives ")
    assert "MiB back" in texts[0] or "GiB back" in texts[0]


def pressed(level, *, since=500, until=10**9, swap_grown_bytes=0):
    """The kernel's pressure between two written tokens."""

    def inject(reply, reading):
        if since <= reply.written_tokens < until:
            return replace(reading, pressure=level, swap_grown_bytes=swap_grown_bytes)
        return reading

    return inject


def test_raised_pressure_costs_no_precision():
    reply = Simulation(MODEL, WISH, ceiling_bytes=20 * GIB, inject=pressed("warn"))

    assert reply.run() == "answer"
    assert kinds(reply) in ([], ["DropBuffers"])


def test_raised_pressure_narrows_the_cache_once_the_disk_fills():
    inject = pressed("warn", since=4_000, swap_grown_bytes=2 * GIB)
    reply = Simulation(MODEL, WISH, ceiling_bytes=16 * GIB, inject=inject)

    assert reply.run() == "answer"
    assert [action.kv_bits for action in reply.actions if isinstance(action, NarrowCache)] == [8]


def test_critical_pressure_ends_the_reply_within_a_minute_and_keeps_it():
    """Macs panic after 90 seconds without memory: 60 tokens are three seconds here."""
    reply = Simulation(
        MODEL, replace(WISH, answer_tokens=3_000), ceiling_bytes=16 * GIB, inject=pressed("critical", since=3_000)
    )

    assert reply.run() == "checkpoint"
    assert kinds(reply) == ["DropBuffers", "NarrowCache", "Land", "Stop"]
    assert reply.written_tokens - 3_000 <= 60 / 3 * 60


def test_a_short_peak_of_pressure_closes_no_thought():
    reply = Simulation(MODEL, WISH, ceiling_bytes=16 * GIB, inject=pressed("critical", since=3_000, until=3_100))

    assert reply.run() == "answer"
    assert not {"Land", "Stop"} & set(kinds(reply))


def test_a_small_model_does_not_end_for_others():
    """What holds a tenth of the ceiling is not what macOS suffers from."""
    reply = Simulation(MODEL, WISH, ceiling_bytes=100 * GIB, inject=pressed("critical"))

    assert reply.run() == "answer"


def test_heat_is_told_once():
    reply = Simulation(MODEL, WISH, ceiling_bytes=20 * GIB, inject=lambda _, reading: replace(reading, thermal="heavy"))

    assert reply.run() == "answer"
    assert [type(action) for action in reply.actions] == [Tell]


models = st.builds(
    Model,
    weight_bytes=st.integers(100 * MIB, 40 * GIB),
    tensor_count=st.sampled_from([24, 56, 64, 61, 160]),
    kv_bytes_per_token=st.sampled_from(
        [
            {16: 28_672, 8: 15_232, 4: 8_960},
            {16: 131_072, 8: 69_632, 4: 40_960},
            {16: 327_680, 8: 174_080, 4: 102_400},
            {16: 70_272, 8: 37_332},
            {16: 46_080},
        ]
    ),
    scratch_bytes_per_token=st.integers(16 * 1024, 2 * MIB),
    garbage_bytes_per_token=st.integers(0, MIB),
)
wishes = st.builds(
    Wish,
    prompt_tokens=st.integers(1, 6_000),
    thought_tokens=st.integers(1, 5_000),
    answer_tokens=st.integers(1, 1_500),
    context_tokens=st.integers(7_000, 16_384),
)


@settings(max_examples=30, deadline=None)
@given(model=models, wish=wishes, spare=st.floats(0.0, 1.2))
def test_no_reply_passes_its_ceiling(model, wish, spare):
    """However little there is beside the weights, the reply ends in an answer or a checkpoint, below the ceiling."""
    ceiling = model.weight_bytes + round(spare * (plan_bytes(model, wish.context_tokens) - model.weight_bytes))
    reply = Simulation(model, wish, ceiling_bytes=ceiling)

    assert reply.run() in {"answer", "length", "checkpoint"}
    assert not reply.passed


@settings(max_examples=30, deadline=None)
@given(model=models, wish=wishes)
def test_with_enough_memory_nothing_is_done(model, wish):
    ceiling = plan_bytes(model, wish.context_tokens) + GIB + 16 * MIB
    reply = Simulation(model, wish, ceiling_bytes=ceiling)

    assert reply.run() in {"answer", "length"}
    assert reply.actions == []


@settings(max_examples=30, deadline=None)
@given(model=models, wish=wishes, at=st.integers(0, 5_000), lost=st.floats(0.0, 0.9), sudden=st.booleans())
def test_a_shortage_that_comes_under_way_is_met(model, wish, at, lost, sudden):
    """The ceiling sinks at any token, at once or over 2,000 tokens, by up to nine tenths of what there was for the cache."""
    full = plan_bytes(model, wish.context_tokens)
    gone = round(lost * (full - model.weight_bytes))

    def inject(reply, reading):
        over = max(0, reply.written_tokens - at)
        share = float(over > 0) if sudden else min(1.0, over / 2_000)
        return replace(reading, ceiling_bytes=full - round(share * gone))

    reply = Simulation(model, wish, ceiling_bytes=full, inject=inject)

    assert reply.run() in {"answer", "length", "checkpoint"}
    assert not reply.passed
    repeated = [
        type(action) for action in reply.actions if not isinstance(action, NarrowCache | DropBuffers | ShortenStep)
    ]
    assert len(repeated) == len(set(repeated))
    widths = [action.kv_bits for action in reply.actions if isinstance(action, NarrowCache)]
    assert widths == sorted(set(widths), reverse=True)


@settings(max_examples=30, deadline=None)
@given(
    model=models,
    wish=wishes,
    spells=st.lists(
        st.tuples(st.integers(0, 9_000), st.integers(1, 4_000), st.sampled_from(["warn", "critical"])), max_size=4
    ),
)
def test_pressure_that_comes_and_goes_makes_nothing_flap(model, wish, spells):
    def inject(reply, reading):
        for since, length, level in spells:
            if since <= reply.written_tokens < since + length:
                return replace(reading, pressure=level, swap_grown_bytes=2 * GIB)
        return reading

    reply = Simulation(model, wish, ceiling_bytes=plan_bytes(model, wish.context_tokens) + GIB, inject=inject)

    assert reply.run() in {"answer", "length", "checkpoint"}
    assert not reply.passed
    assert len(reply.actions) <= 8
    if not any(level == "critical" for *_, level in spells):
        assert not {"Land", "Stop"} & set(kinds(reply))


@pytest.mark.parametrize("kind", [DropBuffers, NarrowCache])
def test_what_gives_nothing_back_is_not_tried_again(kind):
    """Somebody else holds the arrays: the requantised cache is as large as before, MLX's buffers come again at once."""
    ceiling = MODEL.weight_bytes + GIB

    class Stubborn(Simulation):
        def _narrow(self, kv_bits):
            before = self.active_bytes
            super()._narrow(kv_bits)
            self.other_bytes += before - self.active_bytes

    reply = Stubborn(MODEL, replace(WISH, thought_tokens=20_000), ceiling_bytes=ceiling)

    assert reply.run() in {"answer", "checkpoint"}
    tried = [action for action in reply.actions if isinstance(action, kind)]
    assert len(tried) <= 2
    assert isinstance(reply.actions[-1], Land | Stop)
