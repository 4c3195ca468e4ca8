"""The costs of reading several tokens at once: what is kept of them, and what lies between."""

import json
from pathlib import Path

import pytest

from r1mac.engine.drafts.step_costs import CostBook, StepCosts

COSTS = StepCosts({1: 0.04, 2: 0.05, 4: 0.064, 8: 0.1})


@pytest.mark.parametrize(
    ("tokens", "ratio"), [(1, 1.0), (2, 1.25), (3, 1.425), (4, 1.6), (6, 2.05), (8, 2.5), (15, 4.0)]
)
def test_ratios_lie_on_lines(tokens: int, ratio: float) -> None:
    """Between two measured counts the cost is in between, and beyond the last it goes on growing as it did."""
    assert COSTS.ratio(tokens) == pytest.approx(ratio)


def test_more_tokens_never_cost_less() -> None:
    """A step that another program slowed does not make a wider one look cheap."""
    assert StepCosts({1: 1.0, 2: 0.4, 4: 1.5}).ratio(2) == 1.0
    assert StepCosts({1: 1.0, 2: 3.0, 4: 2.0}).ratio(4) == 3.0


def test_one_width_alone_promises_nothing() -> None:
    """Where only single steps were timed, each further token is taken to cost one more."""
    assert StepCosts({1: 2.0}).ratio(5) == 5.0


def test_costs_survive_a_restart(tmp_path: Path) -> None:
    """What one process measured the next one knows, and two that measure at once keep both."""
    path = tmp_path / "deep" / "costs.json"
    one, other = CostBook(path), CostBook(path)

    one.put("a", COSTS)
    other.put("b", StepCosts({1: 1.0}))

    assert CostBook(path).get("a") == COSTS
    assert CostBook(path).get("b") == StepCosts({1: 1.0})
    assert CostBook(path).get("c") is None


def test_the_book_does_not_grow_for_ever(tmp_path: Path) -> None:
    """The oldest measurements go."""
    book = CostBook(tmp_path / "costs.json")
    for index in range(100):
        book.put(str(index), COSTS)

    kept = CostBook(tmp_path / "costs.json")
    assert kept.get("99") == COSTS
    assert kept.get("0") is None
    assert (tmp_path / "costs.json").stat().st_size < 20_000


GOOD = {"1": 0.5, "4": 1.0}


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"4": 1.0},
        {"1": 0},
        {"1": -1},
        {"1": "fast"},
        {"1": True},
        {"1": None},
        {"1": 1.0, "x": 2.0},
        {"1": 1.0, "0": 2.0},
        {"1": 1.0, "4": 1e999},
        [],
        3,
        "1",
    ],
)
def test_a_damaged_entry_is_measured_again(entry: object, tmp_path: Path) -> None:
    """An entry that cannot be a measurement is not there; its neighbours are."""
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"bad": entry, "good": GOOD}))

    assert CostBook(path).get("bad") is None
    assert CostBook(path).get("good") == StepCosts({1: 0.5, 4: 1.0})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_an_empty_book(content: bytes, tmp_path: Path) -> None:
    """A file that is cut off or no JSON costs a measurement, and is whole after it."""
    path = tmp_path / "costs.json"
    path.write_bytes(content)
    book = CostBook(path)
    assert book.get("a") is None

    book.put("a", COSTS)

    assert CostBook(path).get("a") == COSTS


def test_a_disk_that_takes_nothing_is_no_failure(tmp_path: Path) -> None:
    """Where nothing can be written the measurement holds for this run."""
    (tmp_path / "file").write_text("")
    book = CostBook(tmp_path / "file" / "costs.json")

    book.put("a", COSTS)

    assert book.get("a") == COSTS
