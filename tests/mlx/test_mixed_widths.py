"""``--quality --bits N``: the bytes of one width go where they save most, and no byte more is taken."""

import json
from pathlib import Path
from typing import Any

import pytest

from r1mac.convert.recipe import recipe_for
from r1mac.convert.sources import open_source
from r1mac.machine.fake import M2_ULTRA_192, FakeMachine
from r1mac.prepare.calibrating import Quality, calibrate_path
from r1mac.prepare.conversion import Manner, Output, Provenance, convert_to_folders
from r1mac.prepare.files import Note, Progress
from tests.checkpoints import DEEPSEEK_V3, write_checkpoint
from tests.generators import value_of

TEXT = "The quick brown fox jumps over the lazy dog. 17 * 3 = 51.\n" * 15
# Weighing fits each matrix at several widths: one layer with experts, and few of them.
SMALL = {"num_hidden_layers": 2, "n_routed_experts": 4, "hidden_size": 128, "intermediate_size": 256}


@pytest.fixture(name="source", scope="module")
def _source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model; beside it lies what was measured of it."""
    folder = tmp_path_factory.mktemp("mixed")
    source = write_checkpoint(folder / "source", {**DEEPSEEK_V3, **SMALL})
    text = folder / "mine.txt"
    text.write_text(TEXT, encoding="utf-8")
    value_of(calibrate_path(source, folder / "statistics", FakeMachine(M2_ULTRA_192), text_file=text))
    return source


def _converting(source: Path, folder: Path, *, mixes: bool) -> Any:
    quality = Quality(statistics=source.parent / "statistics", mixes=mixes)
    output = Output(recipe_for(None, 3), folder)
    provenance = Provenance(title="it", source="it")
    return convert_to_folders(
        open_source(source), [output], provenance, FakeMachine(M2_ULTRA_192), Manner(quality=quality)
    )


def _weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_widths_differ_and_take_no_more_bytes_than_one_width(source: Path, tmp_path: Path) -> None:
    events = list(_converting(source, tmp_path / "mixed", mixes=True))
    value_of(_converting(source, tmp_path / "plain", mixes=False))

    mixed, plain = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("mixed", "plain"))
    assert plain["quantization"] == {"group_size": 64, "bits": 3, "mode": "affine"}
    assert len({entry["bits"] for entry in mixed["quantization"].values() if isinstance(entry, dict)}) > 1
    sizes = {name: sum(map(len, _weights(tmp_path / name).values())) for name in ("mixed", "plain")}
    assert 0.98 * sizes["plain"] < sizes["mixed"] <= sizes["plain"]
    said = next(event.text for event in events if isinstance(event, Note) and event.text.startswith("3 bits: "))
    assert "one width 0." in said
    # It still counts as the width whose bytes it has.
    assert json.loads((tmp_path / "mixed" / "r1mac.json").read_text())["bits"] == 3


def test_a_stopped_conversion_chooses_the_same_and_weighs_nothing_again(source: Path, tmp_path: Path) -> None:
    value_of(_converting(source, tmp_path / "whole", mixes=True))
    running = _converting(source, tmp_path / "stopped", mixes=True)
    for event in running:
        if isinstance(event, Progress) and event.task == "convert" and event.done:
            running.close()

    events = list(_converting(source, tmp_path / "stopped", mixes=True))

    assert {event.task for event in events if isinstance(event, Progress)} == {"convert"}
    assert not [event for event in events if isinstance(event, Note) and "starting over" in event.text]
    assert _weights(tmp_path / "stopped") == _weights(tmp_path / "whole")
