"""What is done when memory runs short under a running reply: from readings to at most one action at a time.

Peers abort the reply at the ceiling. Here it degrades, in the order of harm, and still arrives: MLX's free buffers go,
the prefill step shrinks, the cache is kept at 8 and then at 4 bits, the thought is closed so that the answer still
fits, and last of all the reply is put on disk and ends, to be resumed.

Two things are watched, and judged apart.

*The plan's ceiling* is met at a token that can be foretold (``outlook.py``). Nothing is done before the last moment at
which the whole ladder still fits, and nothing at all if all that the reply may become does. MLX's numbers show an
action at once, so the governor is asked again at once.

*macOS.* Its pressure level is the kernel's own verdict, and the only one that counts here: free memory says nothing on
a Mac (one at 41 % free was at «warn», one with 0.9 GB free and 18 GB swapped was at «normal»). «warn» gives back what
costs nothing, and the cache goes to 8 bits if swap has grown by 1 GiB under this reply. «critical» goes down the whole
ladder: Macs that stayed starved panicked when their watchdog had not been heard of for 90 seconds, and the ladder ends
after 12 readings of the machine (36 seconds at watch.py's pace) at the latest. Two readings lie between two actions for
pressure, for the first to show. A process that holds less than a quarter of its ceiling is not what macOS suffers
from: it gives back, and does not end its reply for others.

Nothing is undone during a reply: what is narrow stays narrow, so nothing flaps. An action that gave back less than a
tenth of what it promised is not tried again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from r1mac.engine.memory.outlook import MemoryReading, Outlook, Situation
from r1mac.machine.readings import Thermal
from r1mac.plan.memory import CACHE_BLOCK_TOKENS
from r1mac.units import GIB, MIB, format_memory

# Freed buffers that MLX may keep: without them every operation allocates, which is slow, and the churn of buffers is
# what a fault of the GPU driver was seen with. 256 MiB serve a prefill, 32 the steps of single tokens.
_KEPT_BUFFERS = ((256 * MIB, 64), (32 * MIB, 512))
# Of the ceiling. Less is not worth a call (buffers), or would not be noticed by the machine (any action for pressure).
_LEAST_BUFFER_SHARE = 1024
_LEAST_GAIN_SHARE = 64
_EFFECT_SHARE = 10
_LARGE_HOLDER_SHARE = 4
_SWAP_GROWTH_BYTES = GIB
# Readings of the machine: between two actions for pressure, and at «critical» before a landing and before the end.
_SHOW_READINGS = 2
_LAND_READINGS = 3
_STOP_READINGS = 4
_HOT: tuple[Thermal, ...] = ("heavy", "trapping", "sleeping")


@dataclass(frozen=True, slots=True, kw_only=True)
class DropBuffers:
    """Free MLX's buffers, and let it keep at most *keep_bytes* for the rest of this reply."""

    keep_bytes: int
    gain_bytes: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortenStep:
    """Read the prompt in steps of *step_tokens*."""

    step_tokens: int
    gain_bytes: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowCache:
    """Requantise the cache in place, layer by layer."""

    kv_bits: int
    gain_bytes: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Land:
    """Close the thought; the answer follows."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Write a checkpoint and end the reply with the reason ``memory``."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """Do nothing but tell the person."""

    text: str


Relief = DropBuffers | ShortenStep | NarrowCache
Action = Relief | Land | Stop | Tell


class Governor:
    """Decides for one reply. It remembers what was done, and computes nothing else.

    Ask before the first prefill step, between steps, and every ``check_tokens`` written tokens; after an action was
    carried out, ask again with new readings until the answer is None.
    """

    def __init__(self) -> None:
        self._last = _Last()
        self._useless: set[tuple[type[Relief], int]] = set()
        self._landed = self._told_heat = False
        # Of the machine: how often it was asked when something was last done, and how often it was critical since.
        self._acted_at: int | None = None
        self._asked = 0
        self._critical_readings = 0

    def decide(self, reading: MemoryReading, now: Situation) -> Action | None:
        """Return what to do before the next step, or None."""
        self._note_effect(reading)
        outlook = Outlook(reading, now, passing_bytes=self._passing(reading, now))
        self._count(reading)
        choice = _Choice(reading, now, outlook, frozenset(self._useless), can_land=self._can_land(now))
        action = choice.before_collision()
        if action is None and self._may_act_for_pressure(reading):
            action = choice.for_pressure(self._critical_readings)
        if action is None:
            return self._for_heat(reading)
        self._last = self._last._replace(action=action, held_bytes=reading.held_bytes)
        if isinstance(action, ShortenStep):
            passing_bytes = self._last.passing_bytes * action.step_tokens // now.prefill_step_tokens
            self._last = self._last._replace(passing_bytes=passing_bytes)
        self._acted_at, self._critical_readings = reading.machine_readings, 0
        self._landed |= isinstance(action, Land)
        return action

    def _passing(self, reading: MemoryReading, now: Situation) -> int:
        """Return what a step lately held in passing.

        What an action or a growth of the cache held is no sign of what comes; nor is a prompt's step for a token.
        """
        phase, room_tokens = now.phase, now.room_tokens if now.phase == "decode" else 0
        before, self._last = self._last, _Last(phase, room_tokens, passing_bytes=self._last.passing_bytes)
        if (before.phase, before.room_tokens) == (phase, room_tokens) and before.action is None:
            self._last = _Last(phase, room_tokens, passing_bytes=max(0, reading.peak_bytes - reading.active_bytes))
        elif before.phase != phase:
            self._last = _Last(phase, room_tokens)
        return self._last.passing_bytes

    def _note_effect(self, reading: MemoryReading) -> None:
        """Remember if the last action did not do what it was for. A shorter step shows only when one has run."""
        action = self._last.action
        if isinstance(action, DropBuffers | NarrowCache):
            given_back = self._last.held_bytes - reading.held_bytes
            if given_back * _EFFECT_SHARE < action.gain_bytes:
                self._useless.add(_rung(action))

    def _can_land(self, now: Situation) -> bool:
        return now.phase == "decode" and now.thought_open and not self._landed

    def _count(self, reading: MemoryReading) -> None:
        new, self._asked = reading.machine_readings - self._asked, reading.machine_readings
        self._critical_readings = self._critical_readings + new if reading.pressure == "critical" else 0

    def _may_act_for_pressure(self, reading: MemoryReading) -> bool:
        return self._acted_at is None or reading.machine_readings - self._acted_at >= _SHOW_READINGS

    def _for_heat(self, reading: MemoryReading) -> Tell | None:
        if reading.thermal not in _HOT or self._told_heat:
            return None
        self._told_heat = True
        return Tell(text=f"this Mac is hot and has slowed down (thermal pressure: {reading.thermal})")


class _Last(NamedTuple):
    """What the last check saw and did: what was held before its action, and what steps held in passing."""

    phase: str | None = None
    room_tokens: int = 0
    passing_bytes: int = 0
    action: Action | None = None
    held_bytes: int = 0


class _Choice:
    """The rungs of one check, the least harmful first."""

    def __init__(
        self,
        reading: MemoryReading,
        now: Situation,
        outlook: Outlook,
        useless: frozenset[tuple[type[Relief], int]],
        *,
        can_land: bool,
    ) -> None:
        self._reading = reading
        self._now = now
        self._outlook = outlook
        self._useless = useless
        self._can_land = can_land

    def before_collision(self) -> Action | None:
        """Return what keeps the reply below the ceiling."""
        outlook, numbers = self._outlook, self._reading.numbers
        if not outlook.collides:
            return None
        for action in self._relief("memory is nearly full"):
            if self._helps(action):
                return action
        if self._can_land and outlook.has_room_to_answer:
            return Land(text=f"memory is nearly full ({numbers})")
        if outlook.is_last_moment:
            return Stop(
                text=f"memory is full ({numbers}) and nothing more can be given back; the reply is kept on disk"
            )
        return None

    def for_pressure(self, critical_readings: int) -> Action | None:
        """Return what gives the machine something back, if it is short."""
        pressure = self._reading.pressure
        if pressure not in {"warn", "critical"}:
            return None
        why = "memory pressure is critical" if pressure == "critical" else "memory pressure is raised"
        for action in self._relief(why):
            if self._is_worth(action) and (pressure == "critical" or self._is_mild(action)):
                return action
        if pressure != "critical" or self._reading.held_bytes * _LARGE_HOLDER_SHARE < self._reading.ceiling_bytes:
            return None
        if self._can_land:
            return Land(text=why) if critical_readings >= _LAND_READINGS else None
        if critical_readings >= _STOP_READINGS:
            return Stop(text=f"{why}, and stayed so after all was given back that could be; the reply is kept on disk")
        return None

    def _relief(self, why: str) -> Iterator[Relief]:
        """Yield what could give memory back, with what it is expected to give."""
        for action in self._all_relief(why):
            if _rung(action) not in self._useless:
                yield action

    def _all_relief(self, why: str) -> Iterator[Relief]:
        reading, now, outlook = self._reading, self._now, self._outlook
        for most_bytes, share in _KEPT_BUFFERS:
            keep_bytes = min(most_bytes, reading.ceiling_bytes // share)
            gain = reading.buffer_bytes - keep_bytes
            if gain * _LEAST_BUFFER_SHARE >= reading.ceiling_bytes:
                text = f"{why}: {format_memory(gain)} of free buffers given back"
                yield DropBuffers(keep_bytes=keep_bytes, gain_bytes=gain, text=text)
        if now.phase == "prefill" and now.least_step_tokens < min(now.prefill_step_tokens, now.prompt_left_tokens):
            step = self._shorter_step()
            gain = outlook.scratch_bytes(now.prefill_step_tokens) - outlook.scratch_bytes(step)
            text = (
                f"{why}: the prompt is read {step} tokens at a time from here, which takes {format_memory(gain)} less"
            )
            yield ShortenStep(step_tokens=step, gain_bytes=gain, text=text)
        for bits in now.narrower:
            gain = outlook.narrowing_gain_bytes(bits)
            text = f"{why}: the cache is kept at {bits} bits from here, which gives {format_memory(gain)} back"
            yield NarrowCache(kv_bits=bits, gain_bytes=gain, text=text)

    def _shorter_step(self) -> int:
        """Return the longest halving of the step that fits, or the shortest step."""
        step = min(self._now.prefill_step_tokens, self._now.prompt_left_tokens) // 2
        while step > self._now.least_step_tokens and self._outlook.prefill_shortfall(step) > 0:
            step //= 2
        return max(step, self._now.least_step_tokens)

    def _helps(self, action: Relief) -> bool:
        """Whether *action* moves the collision, and can itself be carried out below the ceiling."""
        outlook, now = self._outlook, self._now
        if isinstance(action, DropBuffers):
            return True
        shortfall = outlook.prefill_shortfall(now.prefill_step_tokens)
        if isinstance(action, ShortenStep):
            return outlook.prefill_shortfall(action.step_tokens) < shortfall
        if not outlook.can_narrow:
            return False
        if now.phase == "decode":
            return outlook.gain_tokens(action.kv_bits) >= min(CACHE_BLOCK_TOKENS, now.left_tokens)
        more_bytes = action.gain_bytes
        step = now.prefill_step_tokens
        return outlook.prefill_shortfall(step, kv_bits=action.kv_bits, more_bytes=more_bytes) < shortfall

    def _is_worth(self, action: Relief) -> bool:
        """Whether the machine would notice."""
        if isinstance(action, NarrowCache) and not self._outlook.can_narrow:
            return False
        return action.gain_bytes * _LEAST_GAIN_SHARE >= self._reading.ceiling_bytes

    def _is_mild(self, action: Relief) -> bool:
        """Whether *action* is right for pressure that is only raised: no loss, or 8 bits while the disk fills."""
        if not isinstance(action, NarrowCache):
            return True
        first = self._now.kv_bits == max(self._now.kv_bytes_per_token) and action.kv_bits == self._now.narrower[0]
        return first and self._reading.swap_grown_bytes >= _SWAP_GROWTH_BYTES


def _rung(action: Relief) -> tuple[type[Relief], int]:
    match action:
        case DropBuffers(keep_bytes=kept):
            return DropBuffers, kept
        case NarrowCache(kv_bits=bits):
            return NarrowCache, bits
    return ShortenStep, 0
