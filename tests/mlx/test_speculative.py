"""Drafting changes no text and no distribution, costs nothing where it finds nothing, and leaves the cache right."""

import functools
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from r1mac.engine.drafts.lookup import LookupDrafter
from r1mac.engine.drafts.speculation import Speculation
from r1mac.engine.drafts.step_costs import StepCosts
from r1mac.engine.request import Sampling
from r1mac.engine.sampling import Sampler
from r1mac.engine.transcript import Transcript
from tests.checkpoints import CONFIGS
from tests.drafting import (
    FLAT,
    GREEDY,
    LINEAR,
    TEXT,
    VOCABULARY,
    Counted,
    FixedGauge,
    Prophet,
    drafted,
    make_model,
    plain,
    read,
)

SAMPLINGS = [GREEDY, Sampling(temperature=0.6, seed=3), Sampling(temperature=1.0, top_p=1.0, seed=4)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., nn.Module]:
    """Return a function that gives a tiny model of an architecture, in float32."""
    loaded: dict[str, nn.Module] = {}

    def model(kind: str = "llama") -> nn.Module:
        if kind not in loaded:
            loaded[kind] = make_model(tmp_path_factory.mktemp(kind), CONFIGS[kind])
        return loaded[kind]

    return model


@pytest.fixture(scope="module")
def plain_text(models: Callable[..., nn.Module]) -> Callable[..., list[int]]:
    """Return a function that gives what a model of an architecture writes without drafts."""

    @functools.cache
    def text(kind: str, sampling: Sampling, limit: int, kv_bits: int = 16) -> list[int]:
        return plain(models(kind), sampling, limit, kv_bits=kv_bits)

    return text


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("sampling", SAMPLINGS[:2])
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("error_every", [1, 3, 1000])
def test_drafts_right_and_wrong_change_no_token(
    kind: str,
    sampling: Sampling,
    kv_bits: int,
    error_every: int,
    models: Callable[..., nn.Module],
    plain_text: Callable[..., list[int]],
) -> None:
    """The text is that of plain decoding for the same seed, whether drafts are right, partly right or all wrong."""
    model, expected = models(kind), plain_text(kind, sampling, 48, kv_bits)
    foretold = [(token + (at % error_every == error_every - 1)) % VOCABULARY for at, token in enumerate(expected)]

    tokens, speculation = drafted(model, sampling, 48, Prophet(TEXT + foretold), kv_bits=kv_bits)

    assert tokens == expected
    assert speculation.drafted_tokens > 20
    assert speculation.accepted_tokens >= {1: 0, 3: 10, 1000: 30}[error_every]
    assert speculation.accepted_tokens < speculation.drafted_tokens or error_every == 1000


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
def test_lookups_change_no_token(kind: str, sampling: Sampling, models: Callable[..., nn.Module]) -> None:
    """What is drafted from the text itself changes no token."""
    expected = plain(models(kind), sampling, 100)

    tokens, _ = drafted(models(kind), sampling, 100, LookupDrafter())

    assert tokens == expected


def test_a_text_that_repeats_itself_takes_fewer_steps(models: Callable[..., nn.Module]) -> None:
    """A model that goes in circles is followed: most tokens were drafted, in less than half the steps."""
    few = Sampling(temperature=0, logit_bias=tuple((token_id, 20.0) for token_id in (5, 6, 7)))
    model = Counted(models())
    expected = plain(models(), few, 300)
    transcript = read(model)
    speculation, read_steps = Speculation(LookupDrafter(), FixedGauge(FLAT)), model.steps

    tokens = list(speculation.decode(transcript, TEXT[-1], Sampler(few), [], 300))

    assert tokens == expected
    assert model.steps - read_steps < 130
    assert speculation.accepted_tokens > 170


@pytest.mark.parametrize("costs", [FLAT, LINEAR])
def test_free_text_is_decoded_as_without_drafts(costs: StepCosts, models: Callable[..., nn.Module]) -> None:
    """Where nothing repeats itself, or verifying does not pay, hardly a token is read in vain."""
    sampling, text = Sampling(temperature=1.5, top_p=1.0, seed=1), TEXT[:70]
    model = Counted(models())
    transcript = read(model, text)
    speculation, read_tokens = Speculation(LookupDrafter(), FixedGauge(costs)), model.tokens

    tokens = list(speculation.decode(transcript, text[-1], Sampler(sampling), [], 200))

    assert tokens == plain(models(), sampling, 200, text)
    assert model.tokens - read_tokens <= (200 if costs is LINEAR else 206)


def test_nothing_is_drafted_where_verifying_does_not_pay(models: Callable[..., nn.Module]) -> None:
    """On a machine where verifying four tokens costs three steps, drafts of usual quality are left alone."""
    steep = StepCosts({1: 1.0, 2: 1.7, 4: 3.0})
    expected = plain(models(), GREEDY, 60)

    tokens, speculation = drafted(models(), GREEDY, 60, Prophet(TEXT + expected, chance=0.75), costs=steep)

    assert tokens == expected
    assert speculation.drafted_tokens == 0


def test_the_next_token_is_computed_while_the_caller_has_this_one(models: Callable[..., nn.Module]) -> None:
    """Without a draft the loop looks ahead as plain decoding does; with one the next draft is under way already."""
    for chance in (0.0, 0.95):
        model = Counted(models())
        transcript = read(model)
        prophet = Prophet(TEXT + plain(models(), GREEDY, 40), chance=chance)
        tokens = Speculation(prophet, FixedGauge(FLAT), most_drafted=4).decode(
            transcript, TEXT[-1], Sampler(GREEDY), [], 40
        )
        before = model.steps
        next(tokens)
        assert model.steps - before == 2
        tokens.close()


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 5, 6, 7, 31])
@pytest.mark.parametrize("foretold", [True, False])
def test_the_limit_is_exact(
    limit: int, foretold: bool, models: Callable[..., nn.Module], plain_text: Callable[..., list[int]]
) -> None:
    """As many tokens as were allowed come, and the cache never holds more than it must for them."""
    longer = plain_text("llama", GREEDY, 40)
    drafter = Prophet(TEXT + longer) if foretold else LookupDrafter()
    transcript = read(models())

    tokens = list(Speculation(drafter, FixedGauge(FLAT)).decode(transcript, TEXT[-1], Sampler(GREEDY), [], limit))

    assert tokens == longer[:limit]
    assert list(transcript.token_ids) == TEXT + longer[: max(0, limit - 1)]
    assert all(layer.offset == len(transcript) for layer in transcript._cache)


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
@pytest.mark.parametrize("stop", range(1, 24, 2))
def test_it_can_be_left_at_any_token(
    kind: str, stop: int, models: Callable[..., nn.Module], plain_text: Callable[..., list[int]]
) -> None:
    """Closed in the middle of a draft, the cache holds nothing that was not taken, and the reply can go on otherwise."""
    model, hint = models(kind), [200, 201, 202]
    longer = plain_text(kind, GREEDY, 40)
    speculation = Speculation(Prophet(TEXT + longer), FixedGauge(FLAT), most_drafted=5)
    transcript, written = read(model), []

    for token_id in (tokens := speculation.decode(transcript, TEXT[-1], Sampler(GREEDY), written, 40)):
        written.append(token_id)
        if len(written) == stop:
            break
    tokens.close()

    assert written == longer[:stop]
    assert len(transcript) <= len(TEXT) + stop
    assert list(transcript.token_ids) == (TEXT + written)[: len(transcript)]
    assert all(layer.offset == len(transcript) for layer in transcript._cache)
    text = TEXT + written + hint
    _catch_up(transcript, text)
    rest = list(speculation.decode(transcript, text[-1], Sampler(GREEDY), written + hint, 20))
    assert rest == plain(model, GREEDY, 20, text)


def _catch_up(transcript: Transcript, text: Sequence[int]) -> None:
    shared = transcript.rewind_to(text)
    for _ in transcript.prefill(text[shared:-1]):
        pass


def _chi_square(counts: np.ndarray, expected: np.ndarray) -> tuple[float, int]:
    """Return the statistic and its degrees of freedom, with rare outcomes together."""
    rare = expected < 8
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum() + 1e-9)
    return float(((counts - expected) ** 2 / expected).sum()), len(expected) - 1


def test_drafts_do_not_shift_the_distribution(models: Callable[..., nn.Module]) -> None:
    """Over 600 seeds the token behind a drafted one comes as often as the model's own probabilities say."""
    model, temperature, seeds = models(), 0.35, 600
    transcript = read(model)

    def probabilities(tokens: list[int]) -> np.ndarray:
        logits = np.array(transcript.feed(mx.array(tokens))[-1]).astype(np.float64) / temperature
        transcript.keep(len(TEXT) - 1)
        shifted = np.exp(logits - logits.max())
        return shifted / shifted.sum()

    first = probabilities([TEXT[-1]])
    second = sum(chance * probabilities([TEXT[-1], token]) for token, chance in enumerate(first) if chance > 1e-7)
    draft = [*np.argsort(-first)[:1].tolist(), int(np.argmax(second)), 5]
    drawn = np.zeros((2, VOCABULARY))
    for seed in range(seeds):
        speculation = Speculation(Prophet(TEXT + draft), FixedGauge(FLAT))
        sampler = Sampler(Sampling(temperature=temperature, top_p=1.0, seed=seed))
        for place, token_id in enumerate(speculation.decode(transcript, TEXT[-1], sampler, [], 2)):
            drawn[place, token_id] += 1
        transcript.keep(len(TEXT) - 1)

    assert 0.02 < first.max() < 0.98
    for counts, chances in zip(drawn, (first, second), strict=True):
        statistic, freedom = _chi_square(counts, chances * seeds)
        assert freedom >= 3
        assert statistic < freedom + 4.5 * (2 * freedom) ** 0.5
