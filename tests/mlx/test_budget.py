"""A budget of bytes is kept to the byte, and spent where it saves the most."""

import json
from collections.abc import Generator
from math import prod
from pathlib import Path
from typing import Any

import pytest

from r1mac.convert.layout import plan_layout
from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.recipe_file import load_recipe
from r1mac.convert.sensitivity import from_data, total_cost
from r1mac.convert.sources import open_source
from r1mac.errors import BadRecipe
from r1mac.machine.fake import M2_ULTRA_192, FakeMachine
from r1mac.plan.memory import Quantization
from r1mac.prepare.budget import Budget, Chosen, choose_recipe_within
from r1mac.prepare.calibrating import Quality
from tests.checkpoints import CONFIGS, write_checkpoint

TEXT = "The quick brown fox jumps over the lazy dog. 17 * 3 = 51.\n" * 15


def _ended(running: Generator[Any, None, Any]) -> tuple[list[Any], Any]:
    events = []
    while True:
        try:
            events.append(next(running))
        except StopIteration as stop:
            return events, stop.value


@pytest.fixture(name="source", params=["llama", "qwen2", "deepseek_v3"])
def _source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source", CONFIGS[request.param])


def _choose(source: Path, budget: Budget) -> tuple[list[Any], tuple[Chosen, Path, Path]]:
    text = source.parent / "mine.txt"
    text.write_text(TEXT, encoding="utf-8")
    quality = Quality(text_file=text)
    return _ended(choose_recipe_within(source, source.parent / "out", budget, quality, FakeMachine(M2_ULTRA_192)))


def _written_bytes(folder: Path) -> int:
    """Return the bytes of tensors, without the file's own header."""
    path = folder / "model.safetensors"
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def test_the_result_has_the_bytes_that_were_said_and_the_widths_that_were_written(source: Path) -> None:
    opened = open_source(source)
    count = sum(map(prod, opened.shapes().values()))

    _, (chosen, statistics, file) = _choose(source, Budget(bits_per_weight=3.6))
    folder = source.parent / "out"
    folder.mkdir()
    for _ in convert(opened, load_recipe(file), folder, statistics=statistics):
        pass

    assert _written_bytes(folder) == chosen.size_bytes <= 3.6 * count / 8
    # What is left would not pay for the next group of any matrix: the budget is used up.
    assert chosen.size_bytes > 3.5 * count / 8


def test_what_was_measured_serves_the_next_budget(source: Path) -> None:
    events, (first, _, _) = _choose(source, Budget(bits_per_weight=3.4))
    assert any(event.task == "weigh" for event in events)

    events, (second, _, _) = _choose(source, Budget(bits_per_weight=3.8))

    assert not any(event.task in {"weigh", "calibrate"} for event in events)
    assert second.expected_kl_nats < first.expected_kl_nats
    assert second.size_bytes > first.size_bytes


def test_more_is_not_lost_than_with_one_width_of_the_same_bytes(source: Path) -> None:
    uniform = plan_layout(open_source(source), plain(bits=3))
    _, (chosen, statistics, _) = _choose(source, Budget(size_bytes=uniform.output_bytes))

    known = from_data(json.loads((statistics / "sensitivity-3bit.json").read_text())["sensitivity"])
    assert chosen.size_bytes <= uniform.output_bytes
    assert chosen.expected_kl_nats <= total_cost(known, dict.fromkeys(known.groups, Quantization(bits=3)))


def test_a_budget_that_is_too_small_says_what_would_do(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])

    with pytest.raises(BadRecipe, match="take at least") as caught:
        _choose(source, Budget(size_bytes=1000))

    assert "bits per weight or more" in (caught.value.hint or "")
