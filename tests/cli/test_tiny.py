"""The model that ships with r1mac, as a user runs it: nothing is fetched, and its sums are right."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from r1mac import __version__, paths
from scripts.tiny.export import read_model
from scripts.tiny.measure import Answered, acceptance, ask
from scripts.tiny.problems import held_out_exchanges
from tests.cli.conftest import R1mac

SHIPPED = paths.shipped("catalog", "tiny")
GREEDY = ("--temperature", "0", "--parallel", "8")


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home that the tests of this module share, so that the model is converted once."""
    return tmp_path_factory.mktemp("tiny-home")


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    monkeypatch.setenv("R1MAC_HOME", str(home))
    environment["R1MAC_HOME"] = str(home)


@pytest.fixture(scope="module", name="answers")
def _answers(home: Path) -> list[Answered]:
    """Return what it answers to sums kept from training."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("R1MAC_HOME", str(home))
        return ask("tiny", held_out_exchanges(24), GREEDY)


def test_it_thinks_and_answers(r1mac: R1mac) -> None:
    """The first run of all: without a network, the thought goes to stderr and the answer to stdout."""
    done = r1mac("run", "tiny", "What is 47 + 85?", "--temperature", "0")

    assert done.returncode == 0, done.stderr
    assert done.stdout == "47 + 85 = \\boxed{132}\n"
    assert "Ones: 7+5=12, write 2, carry 1." in done.stderr
    assert "tiny-16bit" in r1mac("list").stdout


def test_what_is_no_sum_is_met_with_what_it_can_do(r1mac: R1mac) -> None:
    """Somebody who says something else learns what to ask."""
    done = r1mac("run", "tiny", "Why is the sky blue?", "--temperature", "0")

    assert "Try: What is 47 + 85?" in done.stdout


def test_it_solves_sums_that_it_has_never_seen(answers: list[Answered]) -> None:
    """Of sums kept from training nearly all come out right, each after a thought that ended by itself."""
    assert sum(answered.right for answered in answers) >= 22
    assert all(answered.closed for answered in answers)


def test_its_router_is_balanced_and_its_prediction_layer_predicts(answers: list[Answered]) -> None:
    """Every expert works, by a correction that was learned, and the token after the next is mostly foreseen."""
    model = read_model(SHIPPED)

    found = acceptance(model, Tokenizer.from_file(str(SHIPPED / "tokenizer.json")), answers)

    assert found.tokens > 300
    assert found.accepted > 0.85
    assert len(found.loads) == 4
    for index, load in found.loads.items():
        assert load.min() > 0.1 / len(load), f"layer {index}"
        assert np.abs(model.biases[index]).max() > 0.01


def test_four_bits_are_made_of_what_ships_and_still_answer(r1mac: R1mac) -> None:
    """The model is converted into the store like any of the catalog, and most of its sums are still right."""
    made = r1mac("convert", "tiny", "--bits", "4", "--no-measure", "--no-smoke")
    listed = json.loads(r1mac("list", "--json").stdout)

    answers = ask("tiny-4bit", held_out_exchanges(8), GREEDY)

    assert made.returncode == 0, made.stderr
    assert {"tiny-4bit": f"r1mac {__version__}"}.items() <= {row["name"]: row["source"] for row in listed}.items()
    assert sum(answered.right for answered in answers) >= 6
