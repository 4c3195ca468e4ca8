"""Bias and penalties: what they do to a distribution, and which settings are refused."""

from collections import Counter
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1mac.engine.request import Sampling
from r1mac.engine.sampling import Sampler

SIZE = 12


def _row(seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=SIZE) * 3).astype(np.float32)


def _choose(sampling: Sampling, row: np.ndarray, history: list[int]) -> int:
    sampler = Sampler(sampling)
    return int(sampler.choose(mx.array(row[None]), len(history), history).item())


def _penalised(sampling: Sampling, row: np.ndarray, history: list[int]) -> np.ndarray:
    """Return the logits as vLLM's definitions have them: bias, then repetition, then frequency and presence."""
    logits = row.astype(np.float64).copy()
    for token_id, bias in sampling.logit_bias:
        logits[token_id] += bias
    for token_id, count in Counter(history).items():
        value = logits[token_id]
        value = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
        logits[token_id] = value - sampling.frequency_penalty * count - sampling.presence_penalty
    return logits


@given(
    seed=st.integers(0, 50),
    history=st.lists(st.integers(0, SIZE - 1), max_size=30),
    repetition=st.floats(0.1, 5),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    bias=st.dictionaries(st.integers(0, SIZE - 1), st.floats(-20, 20), max_size=4),
)
@settings(deadline=None, max_examples=200)
def test_the_likeliest_after_penalties(
    seed: int, history: list[int], repetition: float, presence: float, frequency: float, bias: dict[int, float]
) -> None:
    """The token is the likeliest of the logits that the definitions give, in numpy's float64."""
    sampling = Sampling(
        temperature=0,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=tuple(bias.items()),
    )
    row = _row(seed)

    token = _choose(sampling, row, history)

    expected = _penalised(sampling, row, history)
    assert expected[token] >= expected.max() - 1e-3


def test_penalties_shape_the_distribution() -> None:
    """Sampled tokens follow the penalised distribution: penalties come before temperature."""
    sampling = Sampling(
        temperature=0.7, top_p=1.0, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2, seed=4
    )
    history, row, draws = [0, 0, 3, 5, 5, 5], _row(1) / 3, 1500
    logits = _penalised(sampling, row, history) / sampling.temperature
    expected = np.exp(logits - logits.max())
    expected *= draws / expected.sum()
    sampler, rows = Sampler(sampling), mx.array(row[None])

    tokens = [int(sampler.choose(rows, position, history).item()) for position in range(draws)]

    counts = np.bincount(tokens, minlength=SIZE)
    large = expected >= 5
    statistic = float((((counts - expected) ** 2) / expected)[large].sum())
    freedom = int(large.sum()) - 1
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


@given(st.lists(st.lists(st.integers(0, SIZE - 1), max_size=12), min_size=1, max_size=6))
@settings(deadline=None, max_examples=50)
def test_a_sampler_remembers_nothing_wrong(histories: list[list[int]]) -> None:
    """One sampler that is given other histories in any order chooses as a fresh one does: text may be taken back."""
    sampling = Sampling(temperature=0, frequency_penalty=1.5, repetition_penalty=1.2)
    sampler, row = Sampler(sampling), _row(2)

    for history in histories:
        token = int(sampler.choose(mx.array(row[None]), len(history), history).item())

        assert token == _choose(sampling, row, history)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_bias_forces_and_forbids(temperature: float) -> None:
    """+100 makes a token certain and -100 rules it out, at any temperature."""
    row = _row(3)
    likeliest, least = int(row.argmax()), int(row.argmin())

    forced = Sampling(temperature=temperature, logit_bias=((least, 100.0),), seed=1)
    forbidden = Sampling(temperature=temperature, logit_bias=((likeliest, -100.0),), seed=1)

    assert _choose(forced, row, []) == least
    assert _choose(forbidden, row, []) != likeliest


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, False),
        ({"logit_bias": ((1, 1.0),), "top_k": 5, "min_p": 0.1}, False),
        ({"repetition_penalty": 1.1}, True),
        ({"presence_penalty": -0.1}, True),
        ({"frequency_penalty": 0.1}, True),
    ],
)
def test_only_penalties_need_the_history(changes: dict[str, Any], needed: bool) -> None:
    """Everything else can be computed before the token at work is known."""
    assert Sampler(Sampling(**changes)).needs_history is needed


def test_the_logits_that_were_given_are_not_changed() -> None:
    """Bias and penalties work on a copy: what the model said is still to be told of."""
    row = mx.array(_row(4)[None])
    before = row.tolist()
    sampling = Sampling(temperature=0, repetition_penalty=2.0, logit_bias=((1, 50.0),))

    mx.eval(Sampler(sampling).choose(row, 2, [1, 2]))

    assert row.tolist() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or more, and is -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"temperature": float("inf")}, "temperature must be 0 or more"),
        ({"top_p": 0.0}, "top_p must be more than 0"),
        ({"top_p": 1.1}, "top_p must be from 0 to 1, and is 1.1"),
        ({"top_p": float("nan")}, "top_p must be from 0 to 1, and is nan"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"min_p": -0.1}, "min_p must be from 0 to 1"),
        ({"min_p": 2.0}, "min_p must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be more than 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty must be from 0 to 10"),
        ({"presence_penalty": 2.1}, "presence_penalty must be from -2 to 2"),
        ({"frequency_penalty": -3.0}, "frequency_penalty must be from -2 to 2"),
        ({"logit_bias": ((1, 0.5), (1, 0.7))}, "logit_bias must name every token once"),
        ({"logit_bias": ((-1, 0.5),)}, "by a number from 0 on"),
        ({"logit_bias": ((1, 101.0),)}, "a logit_bias must be from -100 to 100, and one is 101"),
        ({"logit_bias": ((1, float("nan")),)}, "and one is nan"),
    ],
)
def test_what_means_nothing_is_refused(changes: dict[str, Any], words: str) -> None:
    """A value that could leave no token to choose, or no meaning, is refused with a sentence that names it."""
    with pytest.raises(ValueError, match=words):
        Sampling(**changes)


def test_a_bias_beyond_the_vocabulary_is_refused() -> None:
    """A token that the model does not have is refused with both numbers, and nothing else is written over."""
    with pytest.raises(ValueError, match="names token 12, and the vocabulary has 12"):
        _choose(Sampling(logit_bias=((12, 1.0),)), _row(), [])
