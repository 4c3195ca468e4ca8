"""What the governor is told of MLX and of the machine."""

from dataclasses import replace

import mlx.core as mx
import pytest

from r1mac.engine.memory.governor import DropBuffers
from r1mac.engine.memory.watch import MEMORY_SECONDS, Watch
from r1mac.machine.fake import M4_PRO_48, FakeMachine
from r1mac.machine.readings import MemoryState, Readings
from r1mac.units import GIB, MIB


class Clock:
    """Stands still until a test moves it."""

    now_s = 0.0

    def __call__(self):
        return self.now_s


class CountedMachine(FakeMachine):
    """A Mac whose swap grows by a GiB each time that it is asked."""

    asked = 0

    def memory_state(self):
        self.asked += 1
        return MemoryState(pressure="warn", swap_used_bytes=self.asked * GIB)


@pytest.fixture
def clock():
    return Clock()


def watch_of(machine=None, **values):
    return Watch(machine or FakeMachine(M4_PRO_48), ceiling_bytes=8 * GIB, **values)


def test_mlx_s_numbers_are_those_of_the_moment():
    mx.clear_cache()
    with watch_of() as watch:
        before = watch.read()
        held = mx.zeros(4 * MIB, dtype=mx.float32)
        mx.eval(held)
        with_array = watch.read()
        del held
        after = watch.read()

    assert with_array.active_bytes - before.active_bytes == 16 * MIB
    assert after.active_bytes == before.active_bytes
    assert after.buffer_bytes >= 16 * MIB
    assert with_array.ceiling_bytes == 8 * GIB


def test_each_reading_has_a_peak_of_its_own_and_the_reply_s_is_kept():
    with watch_of() as watch:
        base = watch.read().active_bytes
        mx.eval(mx.zeros(4 * MIB, dtype=mx.float32))
        first = watch.read()
        second = watch.read()

        assert first.peak_bytes - base >= 16 * MIB
        assert second.peak_bytes == second.active_bytes
        assert watch.peak_bytes == first.peak_bytes


def test_buffers_are_dropped_and_the_limit_comes_back():
    former = mx.set_cache_limit(64 * MIB)
    try:
        with watch_of() as watch:
            mx.eval(mx.zeros(4 * MIB, dtype=mx.float32))
            watch.drop(DropBuffers(keep_bytes=MIB, gain_bytes=0, text=""))
            dropped = watch.read().buffer_bytes
            mx.eval(mx.zeros(4 * MIB, dtype=mx.float32))
            watch.drop(DropBuffers(keep_bytes=2 * MIB, gain_bytes=0, text=""))

        assert dropped == 0
        assert mx.set_cache_limit(64 * MIB) == 64 * MIB
    finally:
        mx.set_cache_limit(former)


def test_the_machine_is_asked_once_in_a_while(clock):
    machine = CountedMachine(M4_PRO_48)
    with watch_of(machine, clock=clock) as watch:
        for step in range(100):
            clock.now_s = step * 0.1
            reading = watch.read()

    assert machine.asked == 1 + 9.9 // MEMORY_SECONDS
    assert reading.machine_readings == machine.asked
    assert reading.pressure == "warn"
    assert reading.swap_grown_bytes == (machine.asked - 1) * GIB


def test_swap_that_was_there_before_is_not_ours():
    machine = FakeMachine(M4_PRO_48, readings=Readings(memory=MemoryState(swap_used_bytes=9 * GIB), thermal="heavy"))
    with watch_of(machine) as watch:
        reading = watch.read()

    assert reading.swap_grown_bytes == 0
    assert reading.thermal == "heavy"


def test_a_shortage_can_be_made():
    with watch_of(change=lambda reading: replace(reading, ceiling_bytes=GIB, pressure="critical")) as watch:
        reading = watch.read()

    assert (reading.ceiling_bytes, reading.pressure) == (GIB, "critical")
