"""What the governor is told: MLX's own numbers at each check, the machine's state every few seconds.

MLX's numbers are counters in this process and cost nothing. The machine is asked in commands of macOS: one sysctl for
pressure and swap takes about 5 ms, so once in 3 seconds is a sixth of a percent of the time; the thermal state is one
notifyutil, 11 ms, once in half a minute.
"""

import time
from collections.abc import Callable
from typing import Self

import mlx.core as mx

from r1mac.engine.memory.governor import DropBuffers
from r1mac.engine.memory.outlook import MemoryReading
from r1mac.machine.base import Machine
from r1mac.machine.readings import MemoryState, Thermal

MEMORY_SECONDS = 3.0
_THERMAL_SECONDS = 30.0


class Watch:
    """Reads memory for one reply, as a context; at its end MLX keeps buffers as it did before.

    It takes over MLX's peak, which it resets at each reading: what a reply held at most is ``peak_bytes`` here.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        ceiling_bytes: int,
        change: Callable[[MemoryReading], MemoryReading] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch *machine*.

        Args:
            machine: whose pressure, swap and heat count.
            ceiling_bytes: what this process may hold.
            change: what a test makes of each reading.
            clock: seconds that only grow.
        """
        self._machine = machine
        self._ceiling_bytes = ceiling_bytes
        self._change = change
        self._clock = clock
        self._state = MemoryState()
        self._thermal: Thermal | None = None
        self._machine_readings = 0
        self._first_swap_bytes: int | None = None
        self._memory_due_at = self._thermal_due_at = -float("inf")
        self._peak_bytes = 0
        self._former_limit_bytes: int | None = None

    def __enter__(self) -> Self:
        mx.reset_peak_memory()
        self._peak_bytes = 0
        return self

    def __exit__(self, *_: object) -> None:
        if self._former_limit_bytes is not None:
            mx.set_cache_limit(self._former_limit_bytes)
            self._former_limit_bytes = None

    @property
    def peak_bytes(self) -> int:
        """The most that was active since the beginning."""
        return max(self._peak_bytes, mx.get_peak_memory())

    def read(self) -> MemoryReading:
        """Return what is held now, and begin a new peak."""
        self._ask_machine()
        active_bytes, peak_bytes = mx.get_active_memory(), mx.get_peak_memory()
        self._peak_bytes = max(self._peak_bytes, peak_bytes)
        mx.reset_peak_memory()
        swap_bytes = self._state.swap_used_bytes or 0
        reading = MemoryReading(
            ceiling_bytes=self._ceiling_bytes,
            active_bytes=active_bytes,
            buffer_bytes=mx.get_cache_memory(),
            peak_bytes=max(peak_bytes, active_bytes),
            pressure=self._state.pressure,
            swap_grown_bytes=max(0, swap_bytes - (self._first_swap_bytes or 0)),
            thermal=self._thermal,
            machine_readings=self._machine_readings,
        )
        return self._change(reading) if self._change else reading

    def drop(self, action: DropBuffers) -> None:
        """Free MLX's buffers, and let it keep fewer until the end of this reply."""
        former_bytes = mx.set_cache_limit(action.keep_bytes)
        if self._former_limit_bytes is None:
            self._former_limit_bytes = former_bytes
        mx.clear_cache()

    def _ask_machine(self) -> None:
        if self._clock() >= self._memory_due_at:
            self._state = self._machine.memory_state()
            self._machine_readings += 1
            if self._first_swap_bytes is None:
                self._first_swap_bytes = self._state.swap_used_bytes
            self._memory_due_at = self._clock() + MEMORY_SECONDS
        if self._clock() >= self._thermal_due_at:
            self._thermal = self._machine.thermal()
            self._thermal_due_at = self._clock() + _THERMAL_SECONDS
