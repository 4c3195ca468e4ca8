"""The engine room: which models it finds, opens and lets go of."""

import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from r1mac.engine.control import Control
from r1mac.engine.memory.limits import let_go
from r1mac.engine.request import Message
from r1mac.errors import DoesNotFit, UnknownModel
from r1mac.hub.manifest import describe, write_manifest
from r1mac.machine.fake import M2_ULTRA_192, FakeMachine
from r1mac.machine.occupancy import holders
from r1mac.prepare.opening import prepare
from r1mac.prepare.planning import judge
from r1mac.prepare.target import resolve
from r1mac.server.asked import Asked
from r1mac.server.engine_room import EngineRoom
from r1mac.server.lanes import Lane
from r1mac.server.room import Loaded
from r1mac.settings import Settings
from tests.generators import value_of
from tests.sessions import finished

MACHINE = FakeMachine(M2_ULTRA_192)


@pytest.fixture(name="settings")
def _settings(tmp_path: Path, folders: Callable[[str, int], Path]) -> Settings:
    """Return settings with a store of two small models."""
    for name, kind in (("r1-distill-7b-4bit", "llama"), ("somebody--small", "qwen2")):
        folder = tmp_path / "models" / name
        shutil.copytree(folders(kind, 16), folder)
        write_manifest(folder, describe(folder, source="a test", revision=None, bits=16))
    return Settings(models_dir=tmp_path / "models", context_tokens=1024)


def _answer(loaded: Loaded, lane: Lane, said: str = "Hi") -> list[object]:
    request = loaded.request(Asked(messages=(Message("user", said),), max_tokens=8, sampling={"temperature": 0.0}))
    lane.submit(request, Control())
    events: list[object] = []
    while len(lane):
        events += [event for _, event in lane.step()]
    return events


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("7b", "r1-distill-7b-4bit"),
        ("deepseek-r1:7b", "r1-distill-7b-4bit"),
        ("r1-distill-7b-4bit", "r1-distill-7b-4bit"),
        ("somebody/small", "somebody--small"),
    ],
)
def test_a_model_is_found_by_each_of_its_names(name: str, found: str, settings: Settings) -> None:
    assert EngineRoom(settings, MACHINE).find(name) == found


@pytest.mark.parametrize(
    "name", ["70b", "somebody/else", "../models/somebody--small", "/etc", ".", "", "a\nb", "x" * 999]
)
def test_what_is_not_stored_is_unknown_and_no_path_is_looked_at(
    name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fetched for a request, and a folder that has the name is not opened."""
    monkeypatch.chdir(settings.models_dir)
    with pytest.raises(UnknownModel):
        EngineRoom(settings, MACHINE).find(name)
    with pytest.raises(UnknownModel, match="there are 2"):
        EngineRoom(settings, MACHINE).find(None)


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_model_is_opened_answers_and_leaves_nothing(parallel: int, settings: Settings) -> None:
    """One after the other: each answers, the plan of each is told to other processes, and its memory comes back."""
    room = EngineRoom(Settings(models_dir=settings.models_dir, context_tokens=1024, parallel=parallel), MACHINE)
    let_go()  # what earlier tests left
    before_bytes = mx.get_active_memory()
    for name in ("somebody--small", "r1-distill-7b-4bit"):
        loaded = value_of(room.open(name))
        lane = loaded.make_lane()
        assert lane.slots == parallel
        events = _answer(loaded, lane)
        assert finished(events).stats.generated_tokens > 0  # type: ignore[arg-type]
        assert loaded.plan is not None
        assert loaded.plan.kept_prompts_bytes == parallel * loaded.plan.kv_bytes_per_token * 1024
        assert [holder.planned_bytes for holder in holders()] == [loaded.plan.total_bytes]
        assert loaded.held_bytes() > before_bytes
        assert next(model.name for model in room.models(loaded)) == name
        assert [model.loaded for model in room.models(loaded)] == [True, False]
        lane.close()
        del loaded, lane, events
        room.close()
        assert mx.get_active_memory() <= before_bytes + 4096
        assert holders() == ()
    assert room.find(None) == "r1-distill-7b-4bit"


def test_conversations_alternate_without_being_read_again(settings: Settings) -> None:
    """Two clients take turns with one session: what was read of each is kept in memory meanwhile."""
    room = EngineRoom(settings, MACHINE)
    loaded = value_of(room.open("somebody--small"))
    lane = loaded.make_lane()
    said = [f"{word} " + "and so on and on it goes from here to there. " * 12 for word in ("North", "South")]

    first = [finished(_answer(loaded, lane, one)).stats for one in said]  # type: ignore[arg-type]
    again = [finished(_answer(loaded, lane, f"{one}And then?")).stats for one in said]  # type: ignore[arg-type]

    assert all(stats.cached_tokens < 20 for stats in first)
    assert all(stats.cached_tokens > 0.9 * before.prompt_tokens for stats, before in zip(again, first, strict=True))
    lane.close()
    room.close()


def test_a_model_that_does_not_fit_is_known_before_the_other_one_goes(settings: Settings) -> None:
    room = EngineRoom(
        Settings(models_dir=settings.models_dir, context_tokens=500_000, said=frozenset({"context_tokens"})), MACHINE
    )
    with pytest.raises(DoesNotFit, match="500000"):
        room.check("somebody--small")


def test_a_folder_of_ones_own_is_served_beside_the_store(
    settings: Settings, folders: Callable[[str, int], Path]
) -> None:
    """The model that the server was started with may be anywhere; clients know it by its folder's name."""
    folder = folders("llama", 16)
    target = resolve(str(folder), settings)
    first = value_of(prepare(judge(target, settings, MACHINE.profile()), MACHINE, settings))
    room = EngineRoom(settings, MACHINE, first=first)

    assert room.find(None) == room.find(folder.name) == folder.name
    assert {model.name for model in room.models(None)} == {folder.name, "somebody--small", "r1-distill-7b-4bit"}
    assert room.count("somebody--small", Asked(messages=(Message("user", "Hi"),))) > 2
    loaded = value_of(room.open(folder.name))
    assert loaded.count(loaded.request(Asked(raw_prompt="abc"))) == room.count(folder.name, Asked(raw_prompt="abc"))
    room.close()
