"""What the model says of a token: log-probabilities, the likeliest, the entropy."""

import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from r1mac.engine.logprobs import chosen_token, entropy_nats, logprobs
from r1mac.engine.tokenizer import Tokenizer
from tests.checkpoints import write_tokenizer


@given(arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-50, 50, width=32)), st.data())
@settings(deadline=None)
def test_logprobs_are_numpys(values: np.ndarray, data: st.DataObject) -> None:
    """Log-probabilities agree with numpy's, sum to one, and the likeliest come in order."""
    token_id, count = data.draw(st.integers(0, len(values) - 1)), data.draw(st.integers(0, 45))
    exact = values.astype(np.float64) - np.logaddexp.reduce(values.astype(np.float64))

    chosen, likeliest = logprobs(mx.array(values), token_id, count)

    assert chosen == pytest.approx(exact[token_id], abs=1e-4)
    assert [value for _, value in likeliest] == pytest.approx(sorted(exact, reverse=True)[:count], abs=1e-4)
    assert all(value == pytest.approx(exact[other], abs=1e-4) for other, value in likeliest)
    assert len({other for other, _ in likeliest}) == min(count, len(values))
    if count >= len(values):
        assert sum(math.exp(value) for _, value in likeliest) == pytest.approx(1, abs=1e-4)


def test_what_the_model_rules_out_is_no_alternative() -> None:
    """A token at minus infinity is not among the likeliest, and JSON need not say «-Infinity»."""
    _, likeliest = logprobs(mx.array([0.0, -math.inf, 1.0]), 2, 3)

    assert [other for other, _ in likeliest] == [2, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0] * 8, math.log(8)),
        ([0.0, -math.inf, 0.0, -math.inf], math.log(2)),
        ([200.0, 0.0, -200.0], 0.0),
        ([5.0], 0.0),
        ([math.log(0.5), math.log(0.25), math.log(0.25)], 1.5 * math.log(2)),
    ],
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_the_entropy_in_nats(values: list[float], expected: float, dtype: mx.Dtype) -> None:
    """The entropy of a distribution is log(n) for n equals, 0 for certainty, Shannon's sum between."""
    assert entropy_nats(mx.array(values).astype(dtype)) == pytest.approx(expected, abs=5e-3)


def test_a_chosen_token_has_its_text(tmp_path: Path) -> None:
    """The event has texts and log-probabilities of the token and of the likeliest in its place, in order."""
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    x, y = tokenizer.encode("xy")
    logits = mx.full((320,), -10.0).at[mx.array([x, y])].add(mx.array([11.0, 12.0]))

    event = chosen_token(logits, x, 2, channel="answer", tokenizer=tokenizer)

    assert (event.channel, event.chosen.text, event.chosen.token_id) == ("answer", "x", x)
    assert [(one.text, one.token_id) for one in event.likeliest] == [("y", y), ("x", x)]
    assert event.likeliest[1] == event.chosen
