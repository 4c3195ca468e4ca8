"""A reply that runs short of memory, with MLX's own numbers: it degrades in order and still arrives."""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from r1mac.catalog.arch import parse_arch
from r1mac.engine.events import Event
from r1mac.engine.generate import Aids, Session
from r1mac.engine.kept.checkpoint import SavedReply, load_checkpoint
from r1mac.engine.load import Engine
from r1mac.engine.memory.outlook import MemoryReading
from r1mac.engine.memory.supervision import MemoryTerms
from r1mac.engine.memory.watch import Watch
from r1mac.engine.request import GenerateRequest, Message
from r1mac.machine.fake import M2_ULTRA_192, FakeMachine
from r1mac.plan.memory import prefill_scratch_bytes
from r1mac.units import MIB
from tests.checkpoints import LLAMA, write_checkpoint
from tests.sessions import finished, load, notices, request, session_of, text

LAYERS, KV_VALUES = 4, 8 * 64
SHAPE = {
    **LLAMA,
    "hidden_size": 512,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
ARCH = parse_arch(SHAPE)
# Of keys and values in float32; codes have a scale and a bias of 4 bytes for each 32 values.
TOKEN_BYTES = {
    16: 2 * LAYERS * KV_VALUES * 4,
    8: 2 * LAYERS * (KV_VALUES + KV_VALUES // 32 * 8),
    4: 2 * LAYERS * (KV_VALUES // 2 + KV_VALUES // 32 * 8),
}
ASKED = request((Message("user", "x" * 600),), max_tokens=600)
REPLIES = int(os.environ.get("R1MAC_SHORTAGES", "6"))


class _Shortage:
    """From the look at memory number *begin* on, little more may be held than was held then."""

    def __init__(self, begin: int, spare_bytes: int) -> None:
        self._begin, self._spare_bytes = begin, spare_bytes
        self._looks = 0
        self.ceiling_bytes: int | None = None
        self.worst_bytes = 0

    def __call__(self, reading: MemoryReading) -> MemoryReading:
        self._looks += 1
        if self._looks < self._begin:
            return reading
        if self.ceiling_bytes is None:
            self.ceiling_bytes = reading.held_bytes + self._spare_bytes
        else:
            self.worst_bytes = max(self.worst_bytes, reading.peak_bytes)
        return replace(reading, ceiling_bytes=self.ceiling_bytes)


@pytest.fixture(scope="module", name="engine")
def _engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Return a model whose cache soon outgrows its weights."""
    return load(write_checkpoint(tmp_path_factory.mktemp("source"), SHAPE), context_tokens=3000)


def _session(engine: Engine, shortage: _Shortage | None = None) -> Session:
    memory = MemoryTerms(
        make_watch=lambda: Watch(FakeMachine(M2_ULTRA_192), ceiling_bytes=2**40, change=shortage),
        kv_bytes_per_token=TOKEN_BYTES,
        newest_token_bytes=TOKEN_BYTES[16],
        tensor_count=2 * LAYERS,
        least_step_tokens=16,
        scratch_bytes=lambda step_tokens, context_tokens, bits: prefill_scratch_bytes(
            ARCH,
            step_tokens=step_tokens,
            context_tokens=context_tokens,
            fused_attention=False,
            value_bytes=4,
            kv_bits=bits,
        ),
    )
    return session_of(engine.model, engine, context_tokens=3000, aids=Aids(memory=memory))


def _run(session: Session, asked: GenerateRequest, kept_at: Path | None = None) -> list[Event]:
    return list(session.generate(asked, kept_at=kept_at))


def test_enough_memory_changes_nothing(engine: Engine) -> None:
    """Without a shortage nothing is done or said."""
    asked = replace(ASKED, max_tokens=200)
    events = _run(_session(engine), asked)

    assert notices(events) == [one for one in notices(events) if one[0] != "memory"]
    assert text(events) == text(_run(session_of(engine.model, engine, context_tokens=3000), asked))


@pytest.mark.parametrize("number", range(REPLIES))
def test_a_shortage_at_any_moment(number: int, engine: Engine, tmp_path: Path) -> None:
    """Memory becomes short at a random moment: there is an answer, or a reply on the disk that can be resumed."""
    chance = random.Random(number)
    shortage = _Shortage(chance.randrange(1, 40), chance.randrange(24) * MIB // 2)
    kept_at = tmp_path / "reply.journal"

    events = _run(_session(engine, shortage), ASKED, kept_at)

    assert shortage.ceiling_bytes is None or shortage.worst_bytes <= shortage.ceiling_bytes
    end = finished(events)
    if end.reason != "memory":
        assert end.reason in {"stop", "length", "loop"}
        assert text(events, "answer") or not any(kind == "landing" for kind, _ in notices(events))
        return
    assert any(kind == "memory" for kind, _ in notices(events))
    saved = load_checkpoint(kept_at)
    assert saved.finished is None
    assert len(saved.token_ids) == end.stats.generated_tokens
    resumed = list(_session(engine).resume(saved))
    assert text(resumed).startswith(text(events))
    assert finished(resumed).reason in {"stop", "length", "loop"}


@pytest.fixture(scope="module", name="narrowed")
def _narrowed(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], SavedReply]:
    """Return a reply whose shortage a narrower cache cures, as it came and as it stands on the disk."""
    kept_at = tmp_path_factory.mktemp("kept") / "reply.journal"
    events = _run(_session(engine, _Shortage(20, 9 * MIB)), replace(ASKED, max_tokens=900), kept_at)
    return events, load_checkpoint(kept_at)


def test_the_cache_is_narrowed_under_way(narrowed: tuple[list[Event], SavedReply]) -> None:
    """A shortage that a narrower cache cures costs nothing else: the reply is whole."""
    events, _ = narrowed

    said = [what for kind, what in notices(events) if kind == "memory"]
    assert any("8 bits" in what for what in said)
    assert finished(events).reason in {"length", "stop", "loop"}


def test_a_narrowed_cache_is_noted(narrowed: tuple[list[Event], SavedReply]) -> None:
    """A reply on the disk says how wide its cache was at the end, so that it is resumed as it was."""
    _, saved = narrowed

    assert saved.header.kv_bits == 16
    assert saved.kv_bits == 8
