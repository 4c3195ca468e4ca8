"""Sampling beside numpy: the nucleus, the distribution, the seeds."""

import itertools
import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1mac.engine.request import Sampling
from r1mac.engine.sampling import make_sampler, nucleus

VOCABULARY = 320


def _logits(seed: int, *, size: int = VOCABULARY, spread: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * spread).astype(np.float32)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return shifted / shifted.sum()


def _kept(logits: np.ndarray, top_p: float) -> set[int]:
    (row,) = np.array(nucleus(mx.array(logits[None]), top_p))
    return set(np.flatnonzero(np.isfinite(row)).tolist())


def _expected(logits: np.ndarray, top_p: float, *, slack: float = 0.0) -> set[int]:
    """Return the smallest set of likeliest tokens whose probabilities reach *top_p*, by numpy in float64."""
    probabilities = _softmax(logits)
    kept, total = set(), 0.0
    for token_id in np.argsort(-probabilities, kind="stable").tolist():
        if kept and total >= top_p + slack:
            break
        kept.add(token_id)
        total += probabilities[token_id]
    return kept


def _tokens(sampling: Sampling, *, count: int, logits: np.ndarray | None = None) -> list[int]:
    """Return *count* tokens that one sampler takes one after the other."""
    sampler = make_sampler(sampling)
    row = mx.array((_logits(0) if logits is None else logits)[None])
    return [int(sampler(row).item()) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_temperature_zero_takes_the_likeliest(seed: int, dtype: mx.Dtype) -> None:
    """Without temperature the token is the argmax, whatever top_p and seed say."""
    logits = mx.array(_logits(seed)[None]).astype(dtype)

    token = make_sampler(Sampling(temperature=0, top_p=0.5, seed=seed))(logits)

    assert token.shape == (1,)
    assert int(token.item()) == int(np.array(logits.astype(mx.float32)).argmax())


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.01), Sampling(temperature=5.0, top_p=1e-6)])
def test_extreme_settings_take_the_likeliest(sampling: Sampling) -> None:
    """A very low temperature, or a nucleus of one token, leaves only the likeliest."""
    assert set(_tokens(sampling, count=50)) == {int(_logits(0).argmax())}


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40, unique=True),
    top_p=st.floats(0.01, 0.999),
)
@settings(deadline=None)
def test_the_nucleus_is_the_smallest_set(logits: list[float], top_p: float) -> None:
    """Exactly the likeliest tokens that are needed to reach top_p are kept, and always the first of them."""
    values = np.array(logits, dtype=np.float32)

    kept = _kept(values, top_p)

    # float32 may decide differently only where a sum meets top_p to six digits; equal probabilities stay together.
    probabilities = _softmax(values)
    smallest, largest = _expected(values, top_p, slack=-1e-6), _expected(values, top_p, slack=1e-6)
    assert smallest <= kept
    edge = min(probabilities[list(largest)])
    assert all(probabilities[token_id] >= edge * (1 - 1e-5) for token_id in kept)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.95, 0.99])
def test_the_nucleus_of_a_whole_vocabulary(seed: int, top_p: float) -> None:
    """For a vocabulary as large as R1's the nucleus is right to half a thousandth of the probability."""
    logits = _logits(seed, size=129_280, spread=3.0)

    kept = _kept(logits, top_p)

    # MLX's own softmax on the CPU sums to 1.0002 here (measured with mlx 0.32.4), and the running sum adds as much.
    assert len(_expected(logits, top_p, slack=-5e-4)) <= len(kept) <= len(_expected(logits, top_p, slack=5e-4))
    assert int(logits.argmax()) in kept


def test_equal_probabilities_stay_together() -> None:
    """Tokens of equal probability are kept or dropped together, so the order of the vocabulary does not matter."""
    assert _kept(np.zeros(10, dtype=np.float32), 0.35) == set(range(10))
    assert _kept(np.array([1, 0, 0, 5], dtype=np.float32), 0.9) == {3}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.6, top_p=0.95, seed=1),
        Sampling(temperature=1.0, top_p=1.0, seed=2),
        Sampling(temperature=1.5, top_p=0.8, seed=3),
        Sampling(temperature=0.3, top_p=0.97, seed=4),
    ],
)
def test_tokens_come_as_often_as_they_are_likely(sampling: Sampling) -> None:
    """Temperature divides the logits, then the nucleus cuts: the counts of 40,000 draws agree with numpy."""
    draws, logits = 40_000, _logits(7, size=40, spread=1.5)
    tempered = logits / sampling.temperature
    nucleus_ids = sorted(_expected(tempered, sampling.top_p))
    probabilities = _softmax(tempered)[nucleus_ids]
    probabilities /= probabilities.sum()

    rows = mx.broadcast_to(mx.array(logits), (draws, logits.size))
    counts = np.bincount(np.array(make_sampler(sampling)(rows)), minlength=logits.size)

    assert counts.sum() == counts[nucleus_ids].sum() == draws
    expected = draws * probabilities
    large = expected >= 5
    statistic = float((((counts[nucleus_ids] - expected) ** 2) / expected)[large].sum())
    freedom = int(large.sum()) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_one_after_the_other_is_as_random() -> None:
    """The tokens of one answer follow the distribution too: the chain of keys does not repeat itself."""
    logits = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    tokens = _tokens(Sampling(temperature=1.0, top_p=1.0, seed=11), count=2000, logits=logits)

    # Three standard deviations are sqrt(2000 p (1 - p)) * 3: at most 67.
    for token_id, probability in enumerate([0.5, 0.3, 0.2]):
        assert abs(tokens.count(token_id) - 2000 * probability) < 70
    repeats = sum(one == other for one, other in itertools.pairwise(tokens))
    assert abs(repeats - 1999 * (0.25 + 0.09 + 0.04)) < 70


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1, 2**64, -1, 2**70 + 5])
def test_a_seed_gives_the_same_tokens(seed: int) -> None:
    """Any whole number is a seed, and it gives the same tokens each time, whatever else was drawn meanwhile."""
    first = _tokens(Sampling(temperature=1.0, seed=seed), count=30)
    mx.random.seed(1)
    mx.eval(mx.random.normal((3,)))

    assert _tokens(Sampling(temperature=1.0, seed=seed), count=30) == first


@pytest.mark.parametrize("others", [[1, 2, 3, 4], [0, -1, 2**40], [None, None, None]])
def test_other_seeds_give_other_tokens(others: list[Any]) -> None:
    """Different seeds, and samplers without a seed, give different tokens."""
    runs = {tuple(_tokens(Sampling(temperature=1.0, seed=seed), count=30)) for seed in others}

    assert len(runs) == len(others)


def test_two_samplers_do_not_disturb_each_other() -> None:
    """Two answers that are sampled in turns are those that each would have been alone."""
    samplings = [Sampling(temperature=1.0, seed=seed) for seed in (1, 2)]
    row = mx.array(_logits(0)[None])
    one, other = map(make_sampler, samplings)

    pairs = [(int(one(row).item()), int(other(row).item())) for _ in range(20)]

    assert [list(column) for column in zip(*pairs, strict=True)] == [_tokens(each, count=20) for each in samplings]
