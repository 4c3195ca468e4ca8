"""How far a running reply is from its memory's ceiling: what the next tokens need beside what there is. Numbers only.

The cache grows by blocks of 256 tokens. A growth copies one tensor of the cache after the other, so it holds one of
them twice; requantising holds one in its old width, and its new codes. All else is measured: what is live at a check
is what MLX says, and what a step holds in passing is the peak since the check before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from r1mac.machine.readings import Pressure, Thermal
from r1mac.plan.memory import CACHE_BLOCK_TOKENS, WIDE_BITS
from r1mac.units import format_memory

# Checks that may pass before a collision, one for each rung: buffers, 8 bits, 4 bits, landing, stop.
_RUNGS = 5
# What a prefill step holds grows a little from one to the next, with the context.
_SCRATCH_GROWTH = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """What is held at one moment.

    Attributes:
        ceiling_bytes: what may be held: the plan's ``budget_bytes``, or its ``total_bytes`` where that was forced.
        active_bytes: live arrays: weights, cache, and what is being computed.
        buffer_bytes: freed buffers that MLX keeps.
        peak_bytes: the most that was active since the last reading.
        pressure: the kernel's verdict; None where there is none.
        swap_grown_bytes: how much more lies on disk than when the reply began.
        thermal: how far the system has slowed down to cool.
        machine_readings: how often the machine was asked so far; the same number means the same answer.
    """

    ceiling_bytes: int
    active_bytes: int
    buffer_bytes: int
    peak_bytes: int
    pressure: Pressure | None = None
    swap_grown_bytes: int = 0
    thermal: Thermal | None = None
    machine_readings: int = 0

    @property
    def held_bytes(self) -> int:
        """All that MLX has of the computer's memory."""
        return self.active_bytes + self.buffer_bytes

    @property
    def numbers(self) -> str:
        """What is held and what may be, for a person."""
        return f"{format_memory(self.held_bytes)} of {format_memory(self.ceiling_bytes)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the reply is doing.

    Attributes:
        phase: whether the next step reads a prompt (or what was put into the reply) or writes a token.
        thought_open: whether there is a thought that could be closed.
        used_tokens: in the cache.
        room_tokens: that the cache can take before it grows.
        left_tokens: that the reply may still write, by context and max_tokens.
        prompt_left_tokens: still to be read.
        answer_tokens: room for the answer after a landing, closing words included.
        check_tokens: written between two checks.
        tensor_count: that the cache is made of: two a layer, or one for MLA, whose latent is nearly all of it.
        kv_bits: width of the cache now.
        kv_bytes_per_token: what a token of context costs at each width that is possible, the present one included.
        newest_token_bytes: what one costs besides among the newest, of which a narrow cache keeps a block wide.
        prefill_step_tokens: read at once now.
        least_step_tokens: the shortest step.
        scratch_bytes: what the plan expects a prefill step of the present length to hold beside weights and cache.
    """

    phase: Literal["prefill", "decode"]
    thought_open: bool
    used_tokens: int
    room_tokens: int
    left_tokens: int
    prompt_left_tokens: int
    answer_tokens: int
    check_tokens: int
    tensor_count: int
    kv_bits: int
    kv_bytes_per_token: Mapping[int, int]
    newest_token_bytes: int
    prefill_step_tokens: int
    least_step_tokens: int
    scratch_bytes: int

    @property
    def narrower(self) -> list[int]:
        """The widths below the present one, the widest first."""
        return sorted((bits for bits in self.kv_bytes_per_token if bits < self.kv_bits), reverse=True)


class Outlook:
    """What a reading and a situation mean for the tokens to come.

    Attributes:
        free_bytes: below the ceiling, freed buffers not counted; negative above it.
    """

    def __init__(self, reading: MemoryReading, now: Situation, *, passing_bytes: int) -> None:
        """Take both, and what a step holds in passing, as far as it was measured."""
        self.free_bytes = reading.ceiling_bytes - reading.held_bytes
        self._now = now
        self._passing_bytes = passing_bytes
        self._room_tokens = max(now.room_tokens, now.used_tokens)

    def tokens_to_collision(self, *, kept_bytes: int = 0, kv_bits: int | None = None, more_bytes: int = 0) -> int:
        """Return how many tokens can be written before the ceiling is met.

        Args:
            kept_bytes: what must stay free besides.
            kv_bits: of the cache, if not the present one.
            more_bytes: what will have been given back by then.
        """
        price = self._now.kv_bytes_per_token[kv_bits or self._now.kv_bits]
        free = self.free_bytes + more_bytes - self._passing_bytes - kept_bytes
        first_codes_bytes = self._first_codes_bytes(kv_bits or self._now.kv_bits)
        if free < 0:
            return 0
        # The last growth by a block holds, besides, the old part of one tensor.
        tensors = self._now.tensor_count
        growable = (free - first_codes_bytes) * tensors - price * self._room_tokens
        blocks = max(0, growable // (price * CACHE_BLOCK_TOKENS * (tensors + 1)))
        return self._room_tokens - self._now.used_tokens + blocks * CACHE_BLOCK_TOKENS

    @property
    def fits(self) -> bool:
        """Whether all that this reply may still become is below the ceiling."""
        if self._now.phase == "prefill":
            return self.prefill_shortfall(self._now.prefill_step_tokens) <= 0
        return self.tokens_to_collision() >= self._now.left_tokens

    @property
    def collides(self) -> bool:
        """Whether to act now.

        While a prompt is read, what is missing for it, or for an answer to it, is certain. While a thought is
        written, it may end long before the ceiling: the last moment is when the answer, one more block, a check for
        each rung and the room that requantising takes just fit.
        """
        if self.fits:
            return False
        if self._now.phase == "prefill":
            return True
        wanted = _RUNGS * self._now.check_tokens + CACHE_BLOCK_TOKENS
        if self._now.thought_open:
            wanted += self._now.answer_tokens
        return self.tokens_to_collision(kept_bytes=self._narrowing_bytes) < min(self._now.left_tokens, wanted)

    @property
    def is_last_moment(self) -> bool:
        """Whether the next step, or the tokens until the next check, would pass the ceiling."""
        if self._now.phase == "prefill":
            return self._reading_bytes(self._now.prefill_step_tokens, self._now.kv_bits) > self.free_bytes
        return self.tokens_to_collision() < min(self._now.left_tokens, 2 * self._now.check_tokens)

    @property
    def has_room_to_answer(self) -> bool:
        """Whether a landing now would bring an answer worth the name: a quarter of what is kept for one."""
        wanted = self._now.answer_tokens // 4 + 2 * self._now.check_tokens
        return self.tokens_to_collision() >= min(self._now.left_tokens, wanted)

    def gain_tokens(self, kv_bits: int) -> int:
        """Return by how many tokens a cache of that width moves the collision."""
        more_bytes = self.narrowing_gain_bytes(kv_bits)
        return self.tokens_to_collision(kv_bits=kv_bits, more_bytes=more_bytes) - self.tokens_to_collision()

    def narrowing_gain_bytes(self, kv_bits: int) -> int:
        """Return what a narrower cache gives back. The room that it has ahead goes besides; that comes again."""
        prices = self._now.kv_bytes_per_token
        given = (prices[self._now.kv_bits] - prices[kv_bits]) * self._now.used_tokens
        return max(0, given - self._newest_bytes(kv_bits) + self._newest_bytes(self._now.kv_bits))

    @property
    def can_narrow(self) -> bool:
        """Whether requantising itself stays below the ceiling; above it already, it is the quickest way down."""
        return self.free_bytes < 0 or self.free_bytes >= self._narrowing_bytes

    @property
    def _narrowing_bytes(self) -> int:
        widths = self._now.narrower
        return self._tensor_bytes(max(self._now.kv_bytes_per_token)) + self._tensor_bytes(widths[0]) if widths else 0

    def _tensor_bytes(self, kv_bits: int) -> int:
        return self._now.kv_bytes_per_token[kv_bits] * self._room_tokens // self._now.tensor_count

    def scratch_bytes(self, step_tokens: int) -> int:
        """Return what a prefill step holds in passing: as planned, or as measured where that was more."""
        share = min(step_tokens, self._now.prompt_left_tokens) / self._now.prefill_step_tokens
        return round(share * max(self._now.scratch_bytes, _SCRATCH_GROWTH * self._passing_bytes))

    def prefill_shortfall(self, step_tokens: int, *, kv_bits: int | None = None, more_bytes: int = 0) -> int:
        """Return what is missing for the prompt, or for an answer to it, whichever is more; negative if all fits."""
        bits = kv_bits or self._now.kv_bits
        answer_tokens = min(self._now.left_tokens, self._now.answer_tokens)
        answering = self._growth_bytes(bits, answer_tokens) + self._tensor_bytes(bits)
        return max(self._reading_bytes(step_tokens, bits), answering) - self.free_bytes - more_bytes

    def _reading_bytes(self, step_tokens: int, kv_bits: int) -> int:
        """Return what reading the prompt takes besides: its cache is made at once, and copied before anything runs."""
        passing = max(self.scratch_bytes(step_tokens), self._tensor_bytes(kv_bits))
        return self._growth_bytes(kv_bits, 0) + passing

    def _growth_bytes(self, kv_bits: int, more_tokens: int) -> int:
        """Return what the cache grows by until the prompt and *more_tokens* are in it."""
        tokens = self._now.used_tokens + self._now.prompt_left_tokens + more_tokens
        grown = -(-tokens // CACHE_BLOCK_TOKENS) * CACHE_BLOCK_TOKENS - self._room_tokens
        price = self._now.kv_bytes_per_token[kv_bits]
        newest_bytes = 0 if self._room_tokens else self._newest_bytes(kv_bits)
        return price * grown + newest_bytes + self._first_codes_bytes(kv_bits) if grown > 0 else 0

    def _newest_bytes(self, kv_bits: int) -> int:
        """Return what a cache of that width takes besides for its newest tokens."""
        return 0 if kv_bits == WIDE_BITS else self._now.newest_token_bytes * CACHE_BLOCK_TOKENS

    def _first_codes_bytes(self, kv_bits: int) -> int:
        """Return what a narrow cache takes besides when it outgrows the newest tokens: codes for these as well."""
        if kv_bits == WIDE_BITS or self._room_tokens != CACHE_BLOCK_TOKENS:
            return 0
        return self._now.kv_bytes_per_token[kv_bits] * CACHE_BLOCK_TOKENS
