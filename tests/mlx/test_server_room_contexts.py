"""Another context for a model that is loaded: its weights stay, its memory is told anew, what it has read goes on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from r1mac import paths
from r1mac.engine.control import Control
from r1mac.engine.events import Finished
from r1mac.engine.memory.limits import let_go
from r1mac.engine.request import Message
from r1mac.errors import DoesNotFit
from r1mac.hub.manifest import describe, write_manifest
from r1mac.machine.fake import LINUX_64, M2_ULTRA_192, FakeMachine
from r1mac.machine.occupancy import holders, occupy
from r1mac.plan.compute import Compute
from r1mac.prepare.planning import Judgement, judge
from r1mac.prepare.target import stored_target
from r1mac.server.asked import Asked
from r1mac.server.contexts import with_context
from r1mac.server.engine_room import EngineRoom
from r1mac.server.lanes import Lane
from r1mac.server.room import Loaded
from r1mac.settings import Settings
from tests.generators import value_of
from tests.sessions import finished

MACHINE = FakeMachine(M2_ULTRA_192)
NAME = "somebody--small"


@pytest.fixture(name="settings")
def _settings(tmp_path: Path, folders: Callable[[str, int], Path]) -> Settings:
    """Return settings with a store of one small model, which knows 4,096 tokens."""
    _store(tmp_path, folders("qwen2", 16))
    return Settings(models_dir=tmp_path / "models", context_tokens=512)


def _store(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "models" / NAME
    shutil.copytree(model, folder)
    write_manifest(folder, describe(folder, source="a test", revision=None, bits=16))


def _resized(room: EngineRoom, lane: Lane, context_tokens: int) -> Loaded:
    """Choose a context and have *lane* go on under it, as the worker does."""
    room.choose_context(NAME, context_tokens)
    resized = room.resize()
    assert resized is not None
    assert resized.refit_lane is not None
    resized.refit_lane(lane)
    return resized


def _answer(loaded: Loaded, lane: Lane, said: str) -> Finished:
    asked = Asked(messages=(Message("user", said),), max_tokens=8, sampling={"temperature": 0.0})
    lane.submit(loaded.request(asked), Control())
    events: list[object] = []
    while len(lane):
        for _, event in lane.step():
            if isinstance(event, Exception):
                raise event
            events.append(event)
    return finished(events)  # type: ignore[arg-type]


def _told_of_memory() -> tuple[int, int]:
    """Return what other processes are told, and what the record on the disk says, of this one's memory."""
    (holder,) = holders()
    (record,) = paths.runs_dir().glob("*.json")
    written = json.loads(record.read_text())
    assert written["phase"] == "run"
    return holder.planned_bytes, written["total_bytes"]


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_prompt_that_was_too_long_is_answered_in_a_longer_context_and_nothing_is_read_again(
    parallel: int, settings: Settings
) -> None:
    room = EngineRoom(Settings(models_dir=settings.models_dir, context_tokens=512, parallel=parallel), MACHINE)
    let_go()  # what earlier tests left
    before_bytes = mx.get_active_memory()
    loaded = value_of(room.open(NAME))
    lane = loaded.make_lane()
    kept = "North " * 50
    read = _answer(loaded, lane, kept).stats
    long = kept + "South " * 60
    with pytest.raises(DoesNotFit):
        _answer(loaded, lane, long)

    resized = _resized(room, lane, 1024)

    reply = _answer(resized, lane, long)
    assert reply.stats.prompt_tokens > 512
    assert reply.stats.cached_tokens > 0.9 * read.prompt_tokens
    assert resized.context_tokens == 1024
    assert resized.plan is not None
    assert loaded.plan is not None
    assert resized.plan.total_bytes > loaded.plan.total_bytes
    assert _told_of_memory() == (resized.plan.total_bytes, resized.plan.total_bytes)
    assert next(model.context_tokens for model in room.models(resized)) == 1024
    contexts = room.contexts(NAME, resized)
    assert (contexts.context_tokens, contexts.chosen, contexts.longest_context_tokens) == (1024, True, 4096)
    lane.close()
    del loaded, resized, lane
    room.close()
    assert holders() == ()
    assert mx.get_active_memory() <= before_bytes + 4096
    # It is a setting of the model: it comes back with it.
    assert value_of(room.open(NAME)).context_tokens == 1024
    room.close()


def test_a_shorter_context_gives_memory_back_and_what_was_read_comes_from_the_disk(settings: Settings) -> None:
    room = EngineRoom(Settings(models_dir=settings.models_dir, context_tokens=1024), MACHINE)
    loaded = value_of(room.open(NAME))
    lane = loaded.make_lane()
    long = "North " * 150
    _answer(loaded, lane, long)
    held_bytes = mx.get_active_memory()

    resized = _resized(room, lane, 512)

    assert mx.get_active_memory() < held_bytes
    assert resized.plan is not None
    assert _told_of_memory()[0] == resized.plan.total_bytes
    with pytest.raises(DoesNotFit):
        _answer(resized, lane, long)
    assert _answer(resized, lane, "North " * 60).stats.cached_tokens >= 256
    lane.close()
    room.close()


def test_a_context_that_another_process_leaves_no_memory_for_changes_nothing(settings: Settings) -> None:
    room = EngineRoom(settings, MACHINE)
    loaded = value_of(room.open(NAME))
    lane = loaded.make_lane()
    assert loaded.plan is not None
    others = loaded.plan.budget_bytes - loaded.plan.total_bytes
    with occupy("another", planned_bytes=others, budget_bytes=10**15, wired_limit_bytes=10**15):
        room.choose_context(NAME, 4096)
        with pytest.raises(DoesNotFit, match="already holds"):
            room.resize()
        room.undo_context(NAME, 4096)
        assert sorted(holder.planned_bytes for holder in holders()) == sorted((others, loaded.plan.total_bytes))
        assert _answer(loaded, lane, "Hi").reason in {"stop", "length"}
        assert room.contexts(NAME, loaded).context_tokens == 512
    lane.close()
    room.close()


def test_weights_that_another_type_computes_with_are_loaded_anew(
    tmp_path: Path, folders: Callable[[str, int], Path]
) -> None:
    """On a CPU a longer context may leave no room for weights that were dequantised for speed."""
    _store(tmp_path, folders("qwen2", 4))
    settings = Settings(models_dir=tmp_path / "models", context_tokens=512)
    hardware = LINUX_64
    judgement = judge(stored_target(NAME), settings, hardware)
    roomy = with_context(judgement, 4096)
    # Of the longer plan's step the shortest is enough; so much less than it needs that other weights save.
    least_bytes = roomy.plan.weight_bytes + roomy.plan.kv_cache_bytes + _least_scratch_bytes(roomy)
    hardware = replace(hardware, wired_limit_bytes=(least_bytes - 200_000) * 10 // 9)
    room = EngineRoom(settings, FakeMachine(hardware))
    loaded = value_of(room.open(NAME))
    assert loaded.plan is not None
    assert loaded.plan.compute is Compute.DEQUANTIZED

    room.choose_context(NAME, 4096)
    assert room.resize() is None

    assert _told_of_memory()[0] == loaded.plan.total_bytes
    room.close()
    again = value_of(room.open(NAME))
    assert again.plan is not None
    assert (again.plan.compute, again.context_tokens) == (Compute.FLOAT32, 4096)
    lane = again.make_lane()
    assert _answer(again, lane, "Hi").stats.generated_tokens > 0
    lane.close()
    room.close()


def _least_scratch_bytes(judgement: Judgement) -> int:
    return replace(judgement.wish, most_step_tokens=64).plan(judgement.hardware).prefill_scratch_bytes


@pytest.mark.parametrize(("said", "grows"), [(512, False), (None, True)])
def test_requests_may_have_the_context_grow_where_nobody_chose_one(
    said: int | None, grows: bool, settings: Settings
) -> None:
    room = EngineRoom(replace(settings, context_tokens=said), MACHINE)
    loaded = value_of(room.open(NAME))
    assert loaded.may_grow() is grows
    room.choose_context(NAME, 256)
    assert not loaded.may_grow()
    room.close()
