"""A budget of bytes is kept to the byte, and spent where it saves the most."""

import json
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from r1mac.convert.layout import plan_layout
from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.recipe_file import load_recipe
from r1mac.convert.sources import open_source
from r1mac.errors import BadRecipe
from r1mac.machine.fake import M2_ULTRA_192, FakeMachine
from r1mac.plan.memory import Quantization
from r1mac.prepare.budget import Budget, Chosen, choose_recipe_within
from r1mac.prepare.calibrating import Quality
from tests.checkpoints import CONFIGS, DEEPSEEK_V3, write_checkpoint
from tests.generators import told_and_value

# Weighing fits each matrix at several widths: one layer with experts, and few of them.
SMALL = {"num_hidden_layers": 2, "n_routed_experts": 4, "hidden_size": 128, "intermediate_size": 256}
KINDS = {**CONFIGS, "deepseek_v3": {**DEEPSEEK_V3, **SMALL}}
BUDGET = Budget(bits_per_weight=3.4)
TEXT = "The quick brown fox jumps over the lazy dog. 17 * 3 = 51.\n" * 15


class First(NamedTuple):
    """A model, and what choosing a recipe for it said when nothing was known of it."""

    source: Path
    events: list[Any]
    chosen: Chosen


@pytest.fixture(name="first", scope="module", params=["llama", "deepseek_v3"])
def _first(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> First:
    """Return a source, and what choosing within a first budget, which weighs all widths, said of it."""
    source = write_checkpoint(tmp_path_factory.mktemp("budget") / "source", KINDS[request.param])
    events, (chosen, _, _) = _choose(source, BUDGET)
    return First(source, events, chosen)


def _choose(source: Path, budget: Budget) -> tuple[list[Any], tuple[Chosen, Path, Path]]:
    text = source.parent / "mine.txt"
    if not text.exists():
        text.write_text(TEXT, encoding="utf-8")
    quality = Quality(text_file=text)
    return told_and_value(
        choose_recipe_within(source, source.parent / "out", budget, quality, FakeMachine(M2_ULTRA_192))
    )


def _written_bytes(folder: Path) -> int:
    """Return the bytes of tensors, without the file's own header."""
    path = folder / "model.safetensors"
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def test_the_result_has_the_bytes_that_were_said_and_the_widths_that_were_written(first: First, tmp_path: Path) -> None:
    opened = open_source(first.source)
    tensors = plan_layout(opened, plain(bits=3)).tensors
    count = sum(prod(tensor.shape) for tensor in tensors if tensor.quantization)
    wide_bytes = sum(stored.size_bytes for tensor in tensors if not tensor.quantization for stored in tensor.stored())

    _, (chosen, statistics, file) = _choose(first.source, BUDGET)
    for _ in convert(opened, load_recipe(file), tmp_path, statistics=statistics):
        pass

    assert _written_bytes(tmp_path) == chosen.size_bytes
    # What is left would not pay for the next group of any matrix: the budget is used up.
    assert 3.3 * count / 8 < chosen.size_bytes - wide_bytes <= 3.4 * count / 8


def test_what_was_measured_serves_the_next_budget(first: First) -> None:
    assert {event.task for event in first.events} == {"calibrate", "weigh", "compare"}

    events, (second, _, _) = _choose(first.source, Budget(bits_per_weight=3.8))
    again, (same, _, _) = _choose(first.source, BUDGET)

    assert {event.task for event in events} == {"compare"}
    assert second.expected_kl_nats < first.chosen.expected_kl_nats
    assert second.size_bytes > first.chosen.size_bytes
    assert (again, same) == ([], first.chosen)


def test_less_is_lost_than_with_one_width_of_the_same_bytes_and_that_is_said(first: First) -> None:
    uniform = plan_layout(open_source(first.source), plain(bits=3))

    _, (chosen, _, _) = _choose(first.source, Budget(size_bytes=uniform.output_bytes))

    assert chosen.size_bytes <= uniform.output_bytes
    assert min(chosen.compared_kl_nats.values()) < chosen.compared_kl_nats["one width"]
    assert f"one width {chosen.compared_kl_nats['one width']:.4g}" in chosen.recipe.summary


def test_a_size_is_that_of_the_whole_file(first: First, tmp_path: Path) -> None:
    opened = open_source(first.source)
    for name in ("uniform", "chosen"):
        (tmp_path / name).mkdir()
    for _ in convert(opened, plain(bits=3), tmp_path / "uniform"):
        pass
    wanted_bytes = (tmp_path / "uniform" / "model.safetensors").stat().st_size

    _, (_, _, file) = _choose(first.source, Budget(size_bytes=wanted_bytes))
    for _ in convert(opened, load_recipe(file), tmp_path / "chosen"):
        pass

    assert 0.97 * wanted_bytes < (tmp_path / "chosen" / "model.safetensors").stat().st_size <= wanted_bytes


def test_one_width_is_kept_where_what_was_measured_misleads(first: First) -> None:
    budget = Budget(bits_per_weight=Quantization(bits=3).bits_per_weight)
    _, (_, statistics, _) = _choose(first.source, budget)
    path = statistics / "sensitivity-3bit.json"
    kept = path.read_text(encoding="utf-8")
    turned = json.loads(kept)
    kl_nats = turned["measured"]["kl_nats"]
    turned["measured"]["kl_nats"] = {group: 1e-6 / kl for group, kl in kl_nats.items()}
    path.write_text(json.dumps(turned), encoding="utf-8")

    _, (chosen, _, _) = _choose(first.source, budget)
    path.write_text(kept, encoding="utf-8")

    assert chosen.recipe.widths == (Quantization(bits=3),)
    assert chosen.recipe.summary.startswith("3.500 bits a weight: one width, kept")
    assert len(chosen.compared_kl_nats) > 1


def test_a_budget_that_is_too_small_says_what_would_do(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])

    with pytest.raises(BadRecipe, match="take at least") as caught:
        _choose(source, Budget(size_bytes=1000))

    assert "bits per weight or more" in (caught.value.hint or "")
