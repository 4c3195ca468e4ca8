"""A smaller model drafts: no token changes, both caches stay in step, and a draft that is never right is given up."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn

from r1mac.engine.drafts.model import ModelDrafter
from r1mac.engine.drafts.speculation import Speculation
from r1mac.engine.drafts.step_costs import StepCosts
from r1mac.engine.request import Sampling
from r1mac.engine.sampling import Sampler
from r1mac.engine.transcript import Transcript
from tests.checkpoints import CONFIGS, hub_weights
from tests.drafting import FLAT, GREEDY, TEXT, VOCABULARY, FixedGauge, drafted, make_model, plain, read

SAMPLED = Sampling(temperature=1.0, top_p=0.95, seed=5)
CONFIG = CONFIGS["llama"]
# What the small model takes for a token, where the large one takes 1.
LIGHT = StepCosts({1: 0.05})
KINDS = ["same", "near", "narrow", "wide", "shallow", "other"]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """Return the model that is drafted for."""
    return make_model(tmp_path_factory.mktemp("target"), CONFIG)


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, int]]:
    """Return a function that gives a draft model and the number of its logits."""
    made: dict[str, tuple[nn.Module, int]] = {}

    def draft(kind: str) -> tuple[nn.Module, int]:
        if kind not in made:
            config, weights = _draft(kind)
            made[kind] = make_model(tmp_path_factory.mktemp(kind), config, weights=weights), config["vocab_size"]
        return made[kind]

    return draft


def _draft(kind: str) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """Return a model that is like the target in some way."""
    if kind == "other":
        return CONFIG, hub_weights(CONFIG, seed=99)
    weights = hub_weights(CONFIG)
    vocabulary = ("model.embed_tokens.weight", "lm_head.weight")
    match kind:
        case "near":
            noise = {name: mx.random.normal(value.shape) * 0.001 for name, value in weights.items()}
            return CONFIG, {name: (value + noise[name]).astype(value.dtype) for name, value in weights.items()}
        case "narrow":
            fewer = {name: weights[name][: VOCABULARY - 32] for name in vocabulary}
            return {**CONFIG, "vocab_size": VOCABULARY - 32}, weights | fewer
        case "wide":
            more = {name: mx.concatenate([weights[name], weights[name][:32] * 2]) for name in vocabulary}
            return {**CONFIG, "vocab_size": VOCABULARY + 32}, weights | more
        case "shallow":
            kept = {name: value for name, value in weights.items() if ".layers.1." not in name}
            return {**CONFIG, "num_hidden_layers": 1}, kept
    return CONFIG, weights


def _drafter(draft: tuple[nn.Module, int], *, step: int = 64, costs: StepCosts = LIGHT) -> ModelDrafter:
    model, own_vocab_size = draft
    transcript = Transcript(model, prefill_step_tokens=step)
    return ModelDrafter(transcript, FixedGauge(costs), vocab_size=VOCABULARY, own_vocab_size=own_vocab_size)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_model_changes_no_token(
    kind: str, sampling: Sampling, target: nn.Module, drafts: Callable[[str], tuple[nn.Module, int]]
) -> None:
    """Whatever the draft model thinks, the text is that of the large model alone."""
    tokens, speculation = drafted(target, sampling, 80, _drafter(drafts(kind)))

    assert tokens == plain(target, sampling, 80)
    assert speculation.drafted_tokens > 0
    if kind in {"same", "wide"}:
        # With the same random numbers the same model chooses the same, at any temperature.
        assert speculation.accepted_tokens == speculation.drafted_tokens > 60
        assert speculation.is_on
    if kind == "near":
        assert speculation.accepted_tokens > 40


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6, 7, 19])
@pytest.mark.parametrize("kind", ["same", "near"])
def test_both_caches_stay_in_step(
    kind: str, stop: int, target: nn.Module, drafts: Callable[[str], tuple[nn.Module, int]]
) -> None:
    """After a reply was left in mid-draft and something was put into the text, drafts are as good as from the start."""
    speculation = Speculation(_drafter(drafts(kind)), FixedGauge(FLAT), most_drafted=5)
    transcript, written = read(target), []
    for token_id in (tokens := speculation.decode(transcript, TEXT[-1], Sampler(GREEDY), written, 40)):
        written.append(token_id)
        if len(written) == stop:
            break
    tokens.close()
    text = [*TEXT, *written, 200, 201, 202]
    shared = transcript.rewind_to(text)
    for _ in transcript.prefill(text[shared:-1]):
        pass
    drafted_before, accepted_before = speculation.drafted_tokens, speculation.accepted_tokens

    rest = list(speculation.decode(transcript, text[-1], Sampler(GREEDY), text[len(TEXT) :], 30))

    assert rest == plain(target, GREEDY, 30, text)
    fresh, alone = drafted(target, GREEDY, 30, _drafter(drafts(kind)), text=text)
    assert fresh == rest
    share = (speculation.accepted_tokens - accepted_before) / (speculation.drafted_tokens - drafted_before)
    assert share >= 0.7 * alone.accepted_tokens / alone.drafted_tokens
    assert kind != "same" or share == 1.0


def test_the_prompt_can_be_read_step_by_step(target: nn.Module, drafts: Callable[[str], tuple[nn.Module, int]]) -> None:
    """A caller can read the prompt into the draft model itself, with progress; it is not read again."""
    drafter = _drafter(drafts("same"), step=25)

    assert list(drafter.prefill(TEXT)) == [25, 50, 75, 100, 107]

    transcript = read(target)
    tokens = list(Speculation(drafter, FixedGauge(FLAT)).decode(transcript, TEXT[-1], Sampler(GREEDY), [], 20))
    assert tokens == plain(target, GREEDY, 20)
    assert list(drafter.prefill(TEXT + tokens[:5])) == []


def test_a_draft_that_is_never_right_is_given_up(
    target: nn.Module, drafts: Callable[[str], tuple[nn.Module, int]]
) -> None:
    """A model that thinks otherwise drafts some tokens to find that out, and few later."""
    tokens, speculation = drafted(target, GREEDY, 250, _drafter(drafts("other"), costs=StepCosts({1: 0.2})))

    assert tokens == plain(target, GREEDY, 250)
    assert 0 < speculation.drafted_tokens < 60
    assert speculation.is_on is False


def test_a_draft_model_that_is_too_slow_is_not_asked(
    target: nn.Module, drafts: Callable[[str], tuple[nn.Module, int]]
) -> None:
    """A draft model that takes as long as the large one cannot win, even if it is always right."""
    _, speculation = drafted(target, GREEDY, 60, _drafter(drafts("same"), costs=StepCosts({1: 1.0})))

    assert speculation.drafted_tokens == 0


def test_what_was_given_up_is_tried_again(drafts: Callable[[str], tuple[nn.Module, int]]) -> None:
    """Some time after its drafts failed a draft model gets another chance, later and later."""
    drafter = _drafter(drafts("same"))
    drafter.begin(TEXT)
    hope = drafter.chances(1)[0]

    pauses = []
    for _ in range(3):
        for _ in range(12):
            drafter.propose(1, Sampler(GREEDY), 0)
            drafter.take([9], 1)
        assert drafter.chances(1)[0] < hope / 2
        pause = 0
        while drafter.chances(1)[0] < hope:
            drafter.take([9], 0)
            pause += 1
        pauses.append(pause)

    assert pauses == [64, 128, 256]
