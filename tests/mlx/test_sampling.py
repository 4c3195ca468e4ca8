"""Sampling beside numpy: what may be chosen, how often, the seeds, bias and penalties."""

import itertools
import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1mac.engine import sampling as sampling_module
from r1mac.engine.request import Sampling
from r1mac.engine.sampling import Sampler, cut

VOCABULARY = 320
ALL = Sampling(temperature=1.0, top_p=1.0)


def _logits(seed: int, *, size: int = VOCABULARY, spread: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * spread).astype(np.float32)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return shifted / shifted.sum()


def _kept(logits: np.ndarray, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> set[int]:
    (row,) = np.array(cut(mx.array(logits[None]), top_k=top_k, top_p=top_p, min_p=min_p))
    return set(np.flatnonzero(np.isfinite(row)).tolist())


def _expected(
    logits: np.ndarray, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, slack: float = 0.0
) -> set[int]:
    """Return what min-p, top-k and then the nucleus leave, by numpy in float64."""
    probabilities = _softmax(logits)
    order = np.argsort(-probabilities, kind="stable").tolist()[: top_k or None]
    order = [token_id for token_id in order if probabilities[token_id] >= min_p * probabilities[order[0]]]
    share, kept, total = probabilities[order].sum(), set[int](), 0.0
    for token_id in order:
        if kept and total >= (top_p + slack) * share:
            break
        kept.add(token_id)
        total += probabilities[token_id]
    return kept


def _tokens(sampling: Sampling, *, count: int, logits: np.ndarray | None = None) -> list[int]:
    """Return the first *count* tokens of a reply whose logits are always the same."""
    sampler = Sampler(sampling)
    row = mx.array((_logits(0) if logits is None else logits)[None])
    return [int(sampler.choose(row, position).item()) for position in range(count)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("temperature", [0, 1e-30])
def test_temperature_zero_takes_the_likeliest(seed: int, dtype: mx.Dtype, temperature: float) -> None:
    """Without temperature, or with next to none, the token is the argmax, whatever top_p and seed say."""
    logits = mx.array(_logits(seed)[None]).astype(dtype)

    token = Sampler(Sampling(temperature=temperature, top_p=0.5, seed=seed)).choose(logits, 3)

    assert token.shape == (1,)
    assert int(token.item()) == int(np.array(logits.astype(mx.float32)).argmax())


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.01),
        Sampling(temperature=5.0, top_p=1e-6),
        Sampling(temperature=5.0, top_p=1e-300),
        Sampling(temperature=5.0, top_p=1, top_k=1),
        Sampling(temperature=5.0, top_p=1, min_p=1),
    ],
)
def test_extreme_settings_take_the_likeliest(sampling: Sampling) -> None:
    """A very low temperature, or a choice of one token, leaves only the likeliest."""
    assert set(_tokens(sampling, count=50)) == {int(_logits(0).argmax())}


@given(
    logits=st.lists(st.integers(-960, 960).map(lambda step: step / 32), min_size=1, max_size=40, unique=True),
    top_k=st.integers(0, 45),
    top_p=st.floats(0.01, 0.999) | st.just(1.0),
    min_p=st.floats(0.0001, 0.9999) | st.just(0.0),
    ruled_out=st.sampled_from([0, 20_000]),
)
@settings(deadline=None, max_examples=150)
def test_what_is_left_is_the_smallest_set(
    logits: list[float], top_k: int, top_p: float, min_p: float, ruled_out: int
) -> None:
    """Exactly what numpy leaves is left: min-p first, then top-k, then the nucleus of these; never nothing.

    That holds for a small vocabulary, and for a large one of which a format rules out the rest.
    """
    values = np.pad(np.array(logits, dtype=np.float32), (0, ruled_out), constant_values=-np.inf)

    kept = _kept(values, top_k=top_k, top_p=top_p, min_p=min_p)

    # float32 may decide differently only where a sum or a share meets its bound to six digits.
    smallest = _expected(values, top_k=top_k, top_p=top_p, min_p=min_p * (1 + 1e-5), slack=-1e-6)
    largest = _expected(values, top_k=top_k, top_p=top_p, min_p=min_p * (1 - 1e-5), slack=1e-6)
    assert int(values.argmax()) in kept
    assert smallest <= kept
    # Probabilities equal to 1e-5 stay together.
    probabilities = _softmax(values)
    edge = min(probabilities[token_id] for token_id in largest if probabilities[token_id] > 0)
    assert all(probabilities[token_id] >= edge * (1 - 1e-5) for token_id in kept)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 50, 20_000])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.95, 0.99])
def test_the_nucleus_of_a_whole_vocabulary(
    spread: float, top_k: int, top_p: float, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a vocabulary as large as R1's the nucleus is right to a hundred-thousandth, the GPU's way and the CPU's."""
    monkeypatch.setattr(sampling_module, "on_gpu", lambda: gpu)
    logits = _logits(0, size=129_280, spread=spread)

    kept = _kept(logits, top_k=top_k, top_p=top_p)

    least = len(_expected(logits, top_k=top_k, top_p=top_p, slack=-1e-5))
    most = len(_expected(logits, top_k=top_k, top_p=top_p, slack=1e-5))
    assert least <= len(kept) <= most
    assert int(logits.argmax()) in kept


def test_equal_probabilities_stay_together() -> None:
    """Tokens of equal probability are kept or dropped together, so the order of the vocabulary does not matter."""
    assert _kept(np.zeros(10, dtype=np.float32), top_p=0.35) == set(range(10))
    assert _kept(np.zeros(10, dtype=np.float32), top_k=3) == set(range(10))
    assert _kept(np.array([1, 0, 0, 5], dtype=np.float32), top_p=0.9) == {3}
    assert _kept(np.array([1, 0, 0, 5], dtype=np.float32), top_k=3) == {0, 1, 2, 3}


@given(
    allowed=st.sets(st.integers(0, 19), min_size=1, max_size=20),
    top_k=st.integers(0, 25),
    top_p=st.floats(1e-9, 1),
    min_p=st.floats(0, 1),
    temperature=st.floats(0, 3),
)
@settings(deadline=None)
def test_what_was_ruled_out_before_stays_out(
    allowed: set[int], top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    """Tokens at minus infinity, as a format leaves them, are never chosen, and one of the others always is."""
    logits = np.full(20, -np.inf, dtype=np.float32)
    logits[list(allowed)] = _logits(3, size=len(allowed))
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=1)

    assert set(_tokens(sampling, count=5, logits=logits)) <= allowed


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.6, top_p=0.95, seed=1),
        Sampling(temperature=1.0, top_p=1.0, seed=2),
        Sampling(temperature=1.5, top_p=0.8, seed=3),
        Sampling(temperature=0.3, top_p=0.97, seed=4),
        Sampling(temperature=1.0, top_p=1.0, top_k=7, seed=5),
        Sampling(temperature=1.2, top_p=0.7, top_k=12, seed=6),
        Sampling(temperature=0.8, top_p=1.0, min_p=0.05, seed=7),
        Sampling(temperature=1.3, top_p=0.9, top_k=20, min_p=0.02, seed=8),
    ],
)
def test_tokens_come_as_often_as_they_are_likely(sampling: Sampling) -> None:
    """Temperature divides the logits, then the cuts: the counts of 2,500 places agree with numpy's distribution."""
    draws, logits = 2_500, _logits(7, size=40, spread=1.5)
    tempered = logits / sampling.temperature
    left = sorted(_expected(tempered, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p))
    probabilities = _softmax(tempered)[left]
    probabilities /= probabilities.sum()

    rows = mx.broadcast_to(mx.array(logits), (draws, logits.size))
    counts = np.bincount(np.array(Sampler(sampling).choose(rows, 0)), minlength=logits.size)

    assert counts.sum() == counts[left].sum() == draws
    expected = draws * probabilities
    large = expected >= 5
    statistic = float((((counts[left] - expected) ** 2) / expected)[large].sum())
    freedom = int(large.sum()) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_one_after_the_other_is_as_random() -> None:
    """The tokens of one reply follow the distribution too: the chain of keys does not repeat itself."""
    logits = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    tokens = _tokens(Sampling(temperature=1.0, top_p=1.0, seed=11), count=2000, logits=logits)

    # Three standard deviations are sqrt(2000 p (1 - p)) * 3: at most 67.
    for token_id, probability in enumerate([0.5, 0.3, 0.2]):
        assert abs(tokens.count(token_id) - 2000 * probability) < 70
    repeats = sum(one == other for one, other in itertools.pairwise(tokens))
    assert abs(repeats - 1999 * (0.25 + 0.09 + 0.04)) < 70


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=5),
        Sampling(temperature=1.0, top_p=1, top_k=40, min_p=0.01, seed=6),
        Sampling(temperature=1.0, top_p=0.9, top_k=40, logit_bias=((3, 4.0), (7, -100.0)), seed=7),
        Sampling(temperature=0, logit_bias=((3, 4.0),)),
    ],
)
def test_several_at_once_are_those_one_by_one(sampling: Sampling) -> None:
    """Row i of several is the token that is chosen alone at its place: drafting changes no text."""
    logits = np.stack([_logits(seed, size=5000) for seed in range(6)])
    one_by_one = [int(Sampler(sampling).choose(mx.array(row[None]), 10 + i).item()) for i, row in enumerate(logits)]

    at_once = Sampler(sampling).choose(mx.array(logits), 10)

    assert at_once.tolist() == one_by_one


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


def test_a_fresh_seed_is_told() -> None:
    """Where no seed was asked for, the sampler tells the one that gives the same tokens again."""
    first = Sampler(ALL)
    row = mx.array(_logits(0)[None])

    tokens = [int(first.choose(row, position).item()) for position in range(20)]

    assert _tokens(Sampling(temperature=1.0, top_p=1.0, seed=first.seed), count=20) == tokens
