"""Keeps a running reply within its memory: reads what is held, asks the governor, and carries out what it says."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Literal

from r1mac.engine.events import Event, Notice
from r1mac.engine.landing import Landing, memory_landing
from r1mac.engine.memory.governor import DropBuffers, Governor, Land, NarrowCache, ShortenStep, Stop
from r1mac.engine.memory.outlook import Situation
from r1mac.engine.memory.watch import Watch
from r1mac.engine.reply import Reply
from r1mac.engine.transcript import Transcript

# Written tokens between two looks at memory: MLX's counters cost nothing, but each look is some Python.
CHECK_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTerms:
    """What the plan says of memory, as far as a running reply can change it.

    Attributes:
        make_watch: makes what reads memory for one reply.
        kv_bytes_per_token: what a token of context costs at each width that the cache may have.
        newest_token_bytes: what one costs besides among the newest, of which a narrow cache keeps a block wide.
        tensor_count: how many tensors the cache is made of.
        least_step_tokens: the shortest prefill step.
        scratch_bytes: what a prefill step of so many tokens holds that ends with so many in a cache of that width.
    """

    make_watch: Callable[[], Watch]
    kv_bytes_per_token: Mapping[int, int]
    newest_token_bytes: int
    tensor_count: int
    least_step_tokens: int
    scratch_bytes: Callable[[int, int, int], int]


class Supervisor:
    """Minds the memory of one reply. Lives on the thread that loaded the model."""

    def __init__(self, watch: Watch, terms: MemoryTerms, transcript: Transcript, reply: Reply) -> None:
        self._watch = watch
        self._terms = terms
        self._transcript = transcript
        self._reply = reply
        self._governor = Governor()

    def check(
        self, phase: Literal["prefill", "decode"], *, prompt_left_tokens: int = 0, answer_tokens: int = 0
    ) -> Generator[Event, None, Landing | Stop | None]:
        """Give memory back if that is due, and yield what was done.

        Returns a landing if the thought is to be closed, Stop if the reply is to be put down, else None.

        Args:
            phase: whether the next step reads or writes.
            prompt_left_tokens: still to be read.
            answer_tokens: room that is kept for the answer, the words that close the thought included.
        """
        while True:
            action = self._governor.decide(
                self._watch.read(), self._situation(phase, prompt_left_tokens, answer_tokens)
            )
            match action:
                case None:
                    return None
                case Land(text=text):
                    return memory_landing(self._reply.think_tokens, text)
                case Stop(text=text):
                    yield Notice(kind="memory", text=text)
                    return action
                case DropBuffers():
                    self._watch.drop(action)
                case ShortenStep(step_tokens=step_tokens):
                    self._transcript.prefill_step_tokens = step_tokens
                case NarrowCache(kv_bits=kv_bits):
                    self._transcript.requantize(kv_bits)
                    if self._reply.journal is not None:
                        self._reply.journal.narrow(kv_bits)
            yield Notice(kind="memory", text=action.text)

    def _situation(self, phase: Literal["prefill", "decode"], prompt_left_tokens: int, answer_tokens: int) -> Situation:
        transcript, terms, reply = self._transcript, self._terms, self._reply
        step_tokens = transcript.prefill_step_tokens
        return Situation(
            phase=phase,
            thought_open=reply.channel == "think",
            used_tokens=len(transcript),
            room_tokens=transcript.room_tokens,
            left_tokens=max(0, reply.left_tokens),
            prompt_left_tokens=prompt_left_tokens,
            answer_tokens=answer_tokens,
            check_tokens=CHECK_TOKENS,
            tensor_count=terms.tensor_count,
            kv_bits=transcript.kv_bits,
            kv_bytes_per_token=terms.kv_bytes_per_token,
            newest_token_bytes=terms.newest_token_bytes,
            prefill_step_tokens=step_tokens,
            least_step_tokens=min(terms.least_step_tokens, step_tokens),
            scratch_bytes=terms.scratch_bytes(step_tokens, len(transcript) + prompt_left_tokens, transcript.kv_bits),
        )
