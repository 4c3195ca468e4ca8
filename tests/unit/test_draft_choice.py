"""Which model drafts for which, and how many tokens are worth drafting."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from r1mac.catalog.models import all_models
from r1mac.engine.drafts.length import Acceptance, best_length
from r1mac.engine.drafts.pairs import DraftCandidate, can_draft, choose_draft, require_same_vocabulary
from r1mac.engine.drafts.step_costs import StepCosts
from r1mac.errors import BadCheckpoint, UnknownModel

MODELS = {model.key: model for model in all_models()}
# On an M3 Ultra with mlx 0.32.0, 4 bits (ml-explore/mlx #4265); on an M4 Pro (#3839); and a CPU with OpenBLAS.
STEEP = StepCosts({1: 1.0, 2: 1.7, 4: 3.0, 8: 6.1})
MILD = StepCosts({1: 1.0, 2: 1.1, 4: 1.4, 8: 2.2})
FLAT = StepCosts({1: 41.0, 4: 64.0, 8: 65.0})


def test_who_drafts_for_whom() -> None:
    """Of the family, models of one vocabulary draft for those at least four times their size, and for no others."""
    pairs = {
        (draft.alias, target.alias)
        for draft, target in itertools.permutations(MODELS.values(), 2)
        if can_draft(draft.arch, target.arch)
    }

    assert pairs == {("1.5b", "7b"), ("1.5b", "14b"), ("1.5b", "32b"), ("7b", "32b"), ("8b-llama", "70b")}


@pytest.mark.parametrize(
    ("target", "stored", "expected"),
    [
        ("r1-distill-32b", ["r1-distill-7b", "r1-distill-1.5b"], "r1-distill-1.5b"),
        ("r1-distill-32b", ["r1-distill-7b", "r1-distill-8b-llama"], "r1-distill-7b"),
        ("r1-distill-70b", ["r1-distill-1.5b", "r1-distill-8b-llama", "demo"], "r1-distill-8b-llama"),
        ("r1-distill-14b", ["r1-distill-7b", "r1-distill-14b", "r1-distill-32b"], None),
        ("r1-671b", list(MODELS), None),
        ("r1-distill-1.5b", list(MODELS), None),
        ("r1-distill-70b", [], None),
    ],
)
def test_the_lightest_that_can_is_chosen(target: str, stored: list[str], expected: str | None) -> None:
    """Of the models on the disk the lightest of the family drafts, if there is any."""
    candidates = [
        DraftCandidate(name=key, arch=MODELS[key].arch, size_bytes=MODELS[key].source_bytes) for key in stored
    ]

    chosen = choose_draft(MODELS[target].arch, candidates)

    assert (chosen.name if chosen else None) == expected


def test_of_two_widths_the_lighter_drafts() -> None:
    """The same model at 4 and at 8 bits: the one at 4 reads less."""
    arch = MODELS["r1-distill-1.5b"].arch
    candidates = [DraftCandidate(name=f"{bits} bits", arch=arch, size_bytes=bits) for bits in (8, 4)]

    assert choose_draft(MODELS["r1-distill-32b"].arch, candidates) == candidates[1]


def _tokenizer(folder: Path, vocabulary: Any, added: dict[str, int]) -> Path:
    folder.mkdir()
    data = {
        "model": {"type": "BPE", "vocab": vocabulary},
        "added_tokens": [{"id": token_id, "content": text} for text, token_id in added.items()],
    }
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def test_equal_vocabularies_pass(tmp_path: Path) -> None:
    """Tokens count by id and text, however they are listed."""
    one = _tokenizer(tmp_path / "one", {"a": 0, "b": 1}, {"<think>": 2, "</think>": 3})
    other = _tokenizer(tmp_path / "other", {"b": 1, "a": 0, "<think>": 2}, {"</think>": 3})

    require_same_vocabulary(one, other)


@pytest.mark.parametrize(
    ("vocabulary", "added", "problem"),
    [
        ({"a": 0, "c": 1}, {"<think>": 2}, "one cannot draft for other: token 1 is 'c' there and 'b' here"),
        ({"a": 0, "b": 1}, {"<think>": 3}, "one cannot draft for other: token 2 is nothing there and '<think>' here"),
        ({"a": 0, "b": 1}, {"<tool>": 2}, "one cannot draft for other: token 2 is '<tool>' there and '<think>' here"),
        ({"a": 0, "b": 1, "z": 9}, {"<think>": 2}, "one cannot draft for other: token 9 is 'z' there and nothing here"),
    ],
)
def test_other_vocabularies_are_refused(
    vocabulary: dict[str, int], added: dict[str, int], problem: str, tmp_path: Path
) -> None:
    """The first token that is another is named, special ones included."""
    one = _tokenizer(tmp_path / "one", vocabulary, added)
    other = _tokenizer(tmp_path / "other", {"a": 0, "b": 1}, {"<think>": 2})

    with pytest.raises(UnknownModel) as caught:
        require_same_vocabulary(one, other)

    assert caught.value.problem == problem
    assert "--draft" in (caught.value.hint or "")


def test_a_tokenizer_that_is_missing_is_told(tmp_path: Path) -> None:
    """Without a tokenizer.json nothing is assumed."""
    one = _tokenizer(tmp_path / "one", {"a": 0}, {})
    (tmp_path / "other").mkdir()

    with pytest.raises(BadCheckpoint, match=r"has no tokenizer\.json"):
        require_same_vocabulary(one, tmp_path / "other")


@pytest.mark.parametrize(
    ("chance", "costs", "expected"),
    [
        # Verifying four costs three steps: hopeless at the acceptance that drafts usually have.
        (0.5, STEEP, 0),
        (0.7, STEEP, 0),
        (0.8, STEEP, 0),
        (0.0, FLAT, 0),
        (0.1, MILD, 0),
        (0.5, MILD, 2),
        (0.95, MILD, 11),
        (0.95, FLAT, 15),
    ],
)
def test_the_length_follows_cost_and_acceptance(chance: float, costs: StepCosts, expected: int) -> None:
    """No draft where verifying costs more than it brings, long ones where it is cheap and they come true."""
    assert best_length([chance] * 15, costs.ratio) == expected


def test_a_drafters_own_time_counts() -> None:
    """A draft model that takes a quarter of a step for a token drafts fewer, or none."""
    chances = [0.7] * 15

    lengths = [best_length(chances, MILD.ratio, drafting_cost=cost) for cost in (0.0, 0.1, 0.25, 0.7)]

    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[1] > 0
    assert lengths[-1] == 0


@pytest.mark.parametrize("seed", range(5))
def test_no_other_length_is_better(seed: int) -> None:
    """The chosen length has the highest rate of all, worked out draft by draft."""
    dice = random.Random(seed)
    chances = [dice.random() for _ in range(6)]
    costs = [1.0, *sorted(dice.uniform(1, 4) for _ in range(6))]

    def rate(length: int) -> float:
        # Over every way in which a draft can come out: all right up to some token, or wholly.
        expected, right = 0.0, 1.0
        for at in range(length):
            expected += right * (1 - chances[at]) * (at + 1)
            right *= chances[at]
        return (expected + right * (length + 1)) / costs[length]

    chosen = best_length(chances, lambda tokens: costs[tokens - 1])

    best = max(range(7), key=rate)
    assert chosen == (best if rate(best) > 1.1 else 0)


def test_acceptance_is_of_late() -> None:
    """An estimate begins with what is assumed, and follows what came true within some dozens of tokens."""
    acceptance = Acceptance([0.5, 0.9])
    assert acceptance.chance(0) == 0.5

    for _ in range(500):
        acceptance.learn(0, right=False)
    assert acceptance.chance(0) < 0.01
    for _ in range(48):
        acceptance.learn(0, right=True)
    assert acceptance.chance(0) > 0.8
    assert acceptance.chance(1) == 0.9


def test_acceptance_finds_the_rate() -> None:
    """Over many tokens an estimate is near the share that is right."""
    dice, acceptance, seen = random.Random(3), Acceptance([0.5]), []
    for _ in range(2000):
        acceptance.learn(0, right=dice.random() < 0.7)
        seen.append(acceptance.chance(0))

    assert sum(seen[100:]) / len(seen[100:]) == pytest.approx(0.7, abs=0.03)
