"""The training of the tiny model: gradients, learning, going on after a stop."""

from pathlib import Path

import numpy as np
import pytest

from scripts.tiny.batches import batches, draw_tokenizer
from scripts.tiny.export import read_model, write_model
from scripts.tiny.model import CONFIG, PREDICTION_WEIGHT, new_model
from scripts.tiny.optimizer import orthogonal
from scripts.tiny.training import Course, train

SMALL = CONFIG | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}


@pytest.fixture(scope="module", name="tokenizer")
def _tokenizer():
    """Return the tokenizer of seed 1."""
    return draw_tokenizer(1)


def test_gradients_are_the_slopes_of_the_loss(tokenizer):
    """In double precision the loss changes along every weight's gradient as much as the gradient says."""
    model = new_model(np.random.default_rng(7), SMALL)
    for value in model.weights.values():
        value.data = value.data.astype(np.float64)
    batch = next(batches(tokenizer, seed=2, batch_tokens=200, start=0))

    def loss():
        losses = model.learn_from(batch)
        grads = {name: value.grad for name, value in model.weights.items()}
        for value in model.weights.values():
            value.grad = None
        return losses.loss + PREDICTION_WEIGHT * losses.second_loss, grads

    _, grads = loss()
    rng, small = np.random.default_rng(8), 1e-6
    for name, value in model.weights.items():
        direction = rng.standard_normal(value.data.shape)
        direction *= 1 / np.linalg.norm(direction)
        direction += grads[name] / np.linalg.norm(grads[name])
        value.data += small * direction
        above, _ = loss()
        value.data -= 2 * small * direction
        below, _ = loss()
        value.data += small * direction
        assert (above - below) / (2 * small) == pytest.approx(float((grads[name] * direction).sum()), rel=1e-3), name


def test_a_stopped_training_ends_as_one_that_was_not(tokenizer, tmp_path: Path, capsys):
    """After a stop and a new start, the weights are the same as without, to the last bit."""
    whole = Course(steps=4, batch_tokens=200, seed=3, saved=tmp_path / "whole.npz", config=SMALL)
    parted = Course(steps=4, batch_tokens=200, seed=3, saved=tmp_path / "parted.npz", config=SMALL)
    stops = iter([False, True])

    straight = train(whole, tokenizer, lambda: False)
    assert train(parted, tokenizer, lambda: next(stops)) is None
    resumed = train(parted, tokenizer, lambda: False)

    assert "going on after step 2" in capsys.readouterr().out
    assert straight[1].tokens == resumed[1].tokens
    for name, value in straight[0].weights.items():
        np.testing.assert_array_equal(value.data, resumed[0].weights[name].data, err_msg=name)
    for index, bias in straight[0].biases.items():
        np.testing.assert_array_equal(bias, resumed[0].biases[index])


def test_a_checkpoint_of_another_training_is_refused(tokenizer, tmp_path: Path):
    """A training does not go on with weights that were trained otherwise."""
    courses = [Course(steps=1, batch_tokens=200, seed=seed, saved=tmp_path / "c.npz", config=SMALL) for seed in (3, 4)]
    train(courses[0], tokenizer, lambda: False)

    with pytest.raises(SystemExit, match="another training"):
        train(courses[1], tokenizer, lambda: False)


def test_a_few_steps_lower_both_losses(tokenizer, tmp_path: Path):
    """Model and prediction layer learn, and experts that get too few tokens are corrected upwards."""
    course = Course(steps=60, batch_tokens=300, seed=3, saved=tmp_path / "c.npz", config=SMALL)
    batch = next(batches(tokenizer, seed=99, batch_tokens=300, start=0))
    before = new_model(np.random.default_rng(3), SMALL).learn_from(batch)

    model, _ = train(course, tokenizer, lambda: False)

    after = model.learn_from(batch)
    assert after.loss < before.loss - 0.5
    assert after.second_loss < before.second_loss - 0.2
    assert all(np.abs(bias).max() > 0 for bias in model.biases.values())


def test_the_folder_holds_the_weights_in_bfloat16(tokenizer, tmp_path: Path):
    """What is written is read again as it was, to the precision of bfloat16."""
    model = new_model(np.random.default_rng(3), SMALL)

    write_model(tmp_path, model, tokenizer)

    again = read_model(tmp_path)
    assert again.weights.keys() == model.weights.keys()
    for name, value in model.weights.items():
        np.testing.assert_allclose(again.weights[name].data, value.data, rtol=2**-8, err_msg=name)


@pytest.mark.parametrize("shape", [(16, 16), (32, 12), (12, 32), (3, 8, 24)])
def test_muon_s_matrices_are_nearly_orthogonal(shape):
    """All singular values come near 1, whatever they were."""
    matrices = np.random.default_rng(1).standard_normal(shape).astype(np.float32)

    values = np.linalg.svd(orthogonal(matrices), compute_uv=False)

    assert values.min() > 0.4
    assert values.max() < 1.3
