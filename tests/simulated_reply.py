"""A reply whose memory is arithmetic: the cache grows by blocks and copies, actions shrink it as the real ones do."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from r1mac.engine.memory.governor import Action, DropBuffers, Governor, Land, NarrowCache, ShortenStep, Stop, Tell
from r1mac.engine.memory.outlook import MemoryReading, Situation
from r1mac.plan.memory import CACHE_BLOCK_TOKENS
from r1mac.units import GIB, MIB

ANSWER_TOKENS = 600
CHECK_TOKENS = 32
TOKENS_PER_READING = 60  # 20 tokens a second, a reading every three


@dataclass(frozen=True, kw_only=True)
class Model:
    """Shape and prices; by default those of an 8B at 4 bits: 32 layers, 128 KiB a token."""

    weight_bytes: int = 5 * GIB
    tensor_count: int = 64
    kv_bytes_per_token: dict[int, int] = field(default_factory=lambda: {16: 131_072, 8: 69_632, 4: 40_960})
    scratch_bytes_per_token: int = MIB
    garbage_bytes_per_token: int = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a reply would become with all the memory that it wants."""

    prompt_tokens: int = 1_000
    thought_tokens: int = 6_000
    answer_tokens: int = 400
    context_tokens: int = 32_768


Injection = Callable[["Simulation", MemoryReading], MemoryReading]


class Simulation:
    """One reply under a governor; ``run`` returns how it ended."""

    def __init__(self, model: Model, wish: Wish, *, ceiling_bytes: int, inject: Injection | None = None) -> None:
        self.model, self.wish, self.ceiling_bytes = model, wish, ceiling_bytes
        self.inject = inject or (lambda _, reading: reading)
        self.governor = Governor()
        self.kv_bits, self.step_tokens = 16, 512
        self.used_tokens = self.room_tokens = self.written_tokens = self.prompt_read = 0
        self.buffer_bytes, self.buffer_limit_bytes = 0, GIB
        self.other_bytes = 0  # what something else in this process holds, live
        self.thought_open, self.thought_written, self.answer_written = True, 0, 0
        self.actions: list[Action] = []
        self.peak_bytes = self.most_bytes = 0
        self.passed: list[tuple[int, int]] = []  # what was held beyond the ceiling, and at which token
        self.ceiling_now = ceiling_bytes

    @property
    def active_bytes(self) -> int:
        newest_tokens = 0 if self.kv_bits == 16 else min(self.room_tokens, CACHE_BLOCK_TOKENS)
        cache_bytes = self.room_tokens * self._price + newest_tokens * self.model.kv_bytes_per_token[16]
        return self.model.weight_bytes + self.other_bytes + cache_bytes

    @property
    def _price(self) -> int:
        return self.model.kv_bytes_per_token[self.kv_bits]

    def run(self) -> str:
        """Return «answer», «length» or «checkpoint»."""
        if self._govern():
            return "checkpoint"
        while self.prompt_read < self.wish.prompt_tokens:
            self._read_step()
            if self._govern():
                return "checkpoint"
        while self.answer_written < self.wish.answer_tokens:
            if self.used_tokens >= self.wish.context_tokens:
                return "length"
            self._write_token()
            if self.written_tokens % CHECK_TOKENS == 0 and self._govern():
                return "checkpoint"
        return "answer"

    def _read_step(self) -> None:
        self._reserve(self.wish.prompt_tokens)
        step = min(self.step_tokens, self.wish.prompt_tokens - self.prompt_read)
        self._hold(self.model.scratch_bytes_per_token * step)
        self.prompt_read += step
        self.used_tokens += step
        self.buffer_bytes = 0

    def _write_token(self) -> None:
        self._reserve(self.used_tokens + 1)
        self.used_tokens += 1
        self.written_tokens += 1
        self._hold(8 * MIB)
        self.buffer_bytes = min(self.buffer_limit_bytes, self.buffer_bytes + self.model.garbage_bytes_per_token)
        if self.thought_open:
            self.thought_written += 1
            self.thought_open = self.thought_written < self.wish.thought_tokens
        else:
            self.answer_written += 1

    def _reserve(self, tokens: int) -> None:
        if tokens <= self.room_tokens:
            return
        old_tensor = self.room_tokens * self._price // self.model.tensor_count
        self.room_tokens = -(-tokens // CACHE_BLOCK_TOKENS) * CACHE_BLOCK_TOKENS
        self._hold(old_tensor)
        self.buffer_bytes = min(self.buffer_limit_bytes, self.buffer_bytes + old_tensor * self.model.tensor_count)

    def _hold(self, passing_bytes: int) -> None:
        """Note what is held in passing. MLX gives freed buffers back by itself before it passes its own limit."""
        live = self.active_bytes + passing_bytes
        self.buffer_bytes = max(0, min(self.buffer_bytes, self.ceiling_bytes - live))
        self.peak_bytes = max(self.peak_bytes, live)
        self.most_bytes = max(self.most_bytes, live + self.buffer_bytes)
        if live > self.ceiling_now:
            self.passed.append((self.written_tokens, live - self.ceiling_now))

    def _reading(self) -> MemoryReading:
        reading = MemoryReading(
            ceiling_bytes=self.ceiling_bytes,
            active_bytes=self.active_bytes,
            buffer_bytes=self.buffer_bytes,
            peak_bytes=max(self.peak_bytes, self.active_bytes),
            pressure="normal",
            machine_readings=1 + self.written_tokens // TOKENS_PER_READING,
        )
        self.peak_bytes = 0
        reading = self.inject(self, reading)
        self.ceiling_now = reading.ceiling_bytes
        return replace(reading, active_bytes=self.active_bytes, buffer_bytes=self.buffer_bytes)

    def _situation(self) -> Situation:
        reading_prompt = self.prompt_read < self.wish.prompt_tokens
        return Situation(
            phase="prefill" if reading_prompt else "decode",
            thought_open=self.thought_open,
            used_tokens=self.used_tokens,
            room_tokens=self.room_tokens,
            left_tokens=self.wish.context_tokens - self.wish.prompt_tokens - self.written_tokens,
            prompt_left_tokens=self.wish.prompt_tokens - self.prompt_read,
            answer_tokens=ANSWER_TOKENS,
            check_tokens=CHECK_TOKENS,
            tensor_count=self.model.tensor_count,
            kv_bits=self.kv_bits,
            kv_bytes_per_token=self.model.kv_bytes_per_token,
            newest_token_bytes=self.model.kv_bytes_per_token[16],
            prefill_step_tokens=self.step_tokens,
            least_step_tokens=64,
            scratch_bytes=self.model.scratch_bytes_per_token * self.step_tokens,
        )

    def _govern(self) -> bool:
        """Carry out what the governor says, until it says nothing; return whether the reply ends."""
        for _ in range(10):
            action = self.governor.decide(self._reading(), self._situation())
            if action is None:
                return False
            self.actions.append(action)
            match action:
                case DropBuffers(keep_bytes=keep_bytes):
                    self.buffer_limit_bytes = keep_bytes
                    self.buffer_bytes = 0
                case ShortenStep(step_tokens=step_tokens):
                    self.step_tokens = step_tokens
                case NarrowCache(kv_bits=kv_bits):
                    self._narrow(kv_bits)
                case Land():
                    self.thought_open = False
                case Stop():
                    return True
                case Tell():
                    pass
        raise AssertionError(f"the governor never rests: {self.actions[-10:]}")

    def _narrow(self, kv_bits: int) -> None:
        prices = self.model.kv_bytes_per_token
        tensor = (prices[16] + prices[kv_bits]) * self.used_tokens // self.model.tensor_count
        if self.active_bytes <= self.ceiling_now:
            self._hold(tensor)
        self.room_tokens = -(-self.used_tokens // CACHE_BLOCK_TOKENS) * CACHE_BLOCK_TOKENS
        self.kv_bits = kv_bits
        self.buffer_bytes = 0
