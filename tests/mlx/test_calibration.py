"""Statistics of a model's inputs are those of the whole model, whatever the run was like that measured them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from r1mac import mlx_lm_api
from r1mac.convert import calibration
from r1mac.convert.answer_gradient import answer_gradient
from r1mac.convert.calibration import (
    calibrate,
    cut_into_sequences,
    is_complete,
    is_known,
    needs,
    shipped_parts,
)
from r1mac.convert.input_statistics import RECORD_NAME, InputStatistics, correlated_columns, load_statistics
from r1mac.convert.sources import open_source
from r1mac.convert.streamed_model import StreamedModel
from r1mac.errors import DiskFull, DoesNotFit, R1MacError
from r1mac.machine.fake import M2_ULTRA_192, FakeMachine
from r1mac.prepare.calibrating import calibrate_path, sequences_of
from tests.checkpoints import CONFIGS, DEEPSEEK_V3, LLAMA, write_checkpoint, write_fp8_checkpoint

SEQUENCES = np.random.default_rng(1).integers(0, 320, (3, 48)).tolist()


def _statistics(source: Path, folder: Path) -> dict[str, InputStatistics]:
    folder.mkdir(exist_ok=True)
    opened = open_source(source)
    events = list(calibrate(opened, SEQUENCES, folder))
    assert events[-1].done == events[-1].total == 2 * opened.config["num_hidden_layers"]
    assert not list(folder.glob("*-states-*"))
    assert is_complete(folder)
    return _read(folder)


def _read(folder: Path) -> dict[str, InputStatistics]:
    found: dict[str, InputStatistics] = {}
    for path in sorted(folder.glob("[!.]*.safetensors")):
        found |= load_statistics(path)
    return found


class Product(NamedTuple):
    """What a matrix of a whole model is given for one sequence, and the gradient of the answers at what it makes."""

    x: mx.array
    gradient: mx.array
    experts: mx.array | None


def _twin(module: Any, call: Callable[..., mx.array]) -> Any:
    """Return a module like *module*, of the same weights, that does *call* instead, which is given *module*."""

    class Twin(type(module)):
        def __call__(self, *arguments: Any, **options: Any) -> mx.array:
            return call(module, *arguments, **options)

    twin = Twin.__new__(Twin)
    twin.__dict__.update(module.__dict__)
    dict.update(twin, module)
    return twin


def _kept(layer: Any, *arguments: Any, **options: Any) -> mx.array:
    """Hidden states between blocks are kept as bfloat16."""
    states = layer(*arguments, **options)
    return states + mx.stop_gradient(states.astype(mx.bfloat16).astype(mx.float32) - states)


def _products(source: Path, path: str) -> list[Product]:
    """Carry the gradient that r1mac draws back through the whole model at once, to the module at *path*."""
    model: Any = mlx_lm_api.load_lazily(source, {})
    model.set_dtype(mx.float32)
    probe: dict[str, Any] = {"added": 0}

    def probed(matrix: Any, x: mx.array, *arguments: Any, **options: Any) -> mx.array:
        made = matrix(x, *arguments, **options)
        probe.update(x=x, shape=made.shape, experts=arguments[0] if arguments else None)
        return made + probe["added"]

    *parents, name = path.split(".")
    parent = model
    for part in parents:
        parent = parent[int(part)] if part.isdecimal() else parent[part]
    parent[name] = _twin(parent[name], probed)
    model.model.layers = [_twin(layer, _kept) for layer in model.model.layers]

    drawn = answer_gradient(
        StreamedModel(open_source(source)), [model.model(mx.array([sequence]))[0] for sequence in SEQUENCES]
    )
    found = []
    for sequence, (at_states, _) in zip(SEQUENCES, drawn, strict=True):

        def through(added: mx.array, sequence: list[int] = sequence) -> mx.array:
            probe["added"] = added
            return model.model(mx.array([sequence]))[0]

        gradient = mx.vjp(through, [mx.zeros(probe["shape"])], [at_states])[1][0]
        probe["added"] = 0
        model.model(mx.array([sequence]))
        found.append(Product(probe["x"], gradient, probe["experts"]))
    return found


def _lengths(rows: mx.array) -> np.ndarray:
    return np.sqrt((np.array(rows) ** 2).sum(axis=-1))


def _weighted(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the weighted second moments, their correlations, and how many tokens of one weight tell as much."""
    products = (rows * weights[:, None]).T @ rows / weights.sum()
    roots = np.sqrt(np.diagonal(products))
    return np.diagonal(products), products / roots / roots[:, None], weights.sum() ** 2 / (weights**2).sum()


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("llama", "model.layers.1.mlp.down_proj"),
        ("qwen2", "model.layers.1.self_attn.o_proj"),
        ("qwen3", "model.layers.0.self_attn.k_proj"),
        ("deepseek_v3", "model.layers.2.self_attn.kv_a_proj_with_mqa"),
        ("deepseek_v3", "model.layers.2.mlp.shared_experts.down_proj"),
    ],
)
def test_inputs_count_as_much_as_the_whole_models_answers_hang_on_their_products(
    kind: str, path: str, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "source", CONFIGS[kind])

    known = _statistics(source, tmp_path / "statistics")[path]

    products = _products(source, path)
    rows = np.concatenate([np.array(product.x).reshape(-1, product.x.shape[-1]) for product in products])
    weights = np.concatenate([_lengths(product.gradient).reshape(-1) for product in products])
    assert weights.max() > 2 * weights.min(), "all tokens would count alike"
    moments, correlations, count = _weighted(rows, weights)
    np.testing.assert_allclose(np.array(known.moments[0]), moments, rtol=2e-3)
    np.testing.assert_allclose(np.array(known.correlations[0], np.float32), correlations, atol=2e-3)
    assert known.counts.tolist() == [pytest.approx(count, rel=1e-3)]


@pytest.mark.parametrize("name", ["gate_proj", "down_proj"])
def test_each_expert_is_told_by_its_own_tokens(name: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3)
    path = f"model.layers.2.mlp.switch_mlp.{name}"

    known = _statistics(source, tmp_path / "statistics")[path]

    rows, weights, experts = [], [], []
    for x, gradient, numbers in _products(source, path):
        assert numbers is not None
        rows.append(np.array(mx.broadcast_to(x, (*numbers.shape, *x.shape[-2:]))).reshape(-1, x.shape[-1]))
        weights.append(_lengths(gradient).reshape(-1))
        experts.append(np.array(numbers).reshape(-1))
    all_rows, all_weights, numbers = np.concatenate(rows), np.concatenate(weights), np.concatenate(experts)
    chosen = [number for number in range(DEEPSEEK_V3["n_routed_experts"]) if (numbers == number).sum() > 1]
    assert len(chosen) > 1
    for expert in chosen:
        mine = numbers == expert
        moments, correlations, count = _weighted(all_rows[mine], all_weights[mine])
        np.testing.assert_allclose(np.array(known.moments[expert]), moments, rtol=2e-3)
        assert known.counts[expert].item() == pytest.approx(count, rel=1e-3)
        if name == "down_proj":
            found = np.array(known.correlations[0][expert], np.float32)
            np.testing.assert_allclose(found, correlations, atol=2e-3)
    if name == "gate_proj":
        correlations = _weighted(all_rows, all_weights)[1]
        np.testing.assert_allclose(np.array(known.correlations[0], np.float32), correlations, atol=2e-3)
    few = int(mx.argmin(known.counts).item())
    common = mx.sum(known.moments * known.counts[:, None], axis=0) / mx.sum(known.counts)
    blended = (known.counts[few] * known.moments[few] + 64 * common) / (known.counts[few] + 64)
    assert mx.allclose(known.slice_moments(few), blended)


def test_heads_of_latent_attention_are_told_apart(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3)
    known = _statistics(source, tmp_path / "statistics")
    attention = "model.layers.0.self_attn"

    values = _products(source, f"{attention}.unembed_out")
    keys = _products(source, f"{attention}.embed_q")

    for head in range(DEEPSEEK_V3["num_attention_heads"]):
        latent = np.concatenate([np.array(product.x[0, 0]) for product in values])
        weights = np.concatenate([_lengths(product.gradient[0, head]) for product in values])
        moments = _weighted(latent, weights)[0]
        np.testing.assert_allclose(np.array(known[f"{attention}.unembed_out"].moments[head]), moments, rtol=2e-3)
        # Rows of embed_q run along the queries that meet a key: they are what the gradient of the key is made of.
        queries = np.concatenate([np.array(product.gradient[0, head]) for product in keys])
        weights = np.concatenate([_lengths(product.x[0, 0]) for product in keys])
        moments, correlations, _ = _weighted(queries, weights)
        found = known[f"{attention}.embed_q"]
        np.testing.assert_allclose(np.array(found.moments[head]), moments, rtol=2e-3)
        np.testing.assert_allclose(np.array(found.correlations[0][head], np.float32), correlations, atol=2e-3)


def test_the_gradient_of_the_answers_has_the_second_moments_of_the_divergence(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", {**LLAMA, "vocab_size": 64})
    model = StreamedModel(open_source(source))
    head = np.array(mx.concatenate([rows for _, rows in model.row_blocks(model.head_path)]).astype(mx.float32))
    state = np.random.default_rng(2).normal(size=head.shape[1]).astype(np.float32)
    shares = np.exp(head @ state - (head @ state).max())
    shares /= shares.sum()
    fisher = np.diag(shares) - np.outer(shares, shares)

    drawn = answer_gradient(model, [mx.array(np.tile(state, (20_000, 1)))])[0]

    gradients = np.array(drawn.at_states)
    measured, expected = gradients.T @ gradients / len(gradients), head.T @ fisher @ head
    assert np.abs(measured - expected).max() < 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(np.array(drawn.at_logits) ** 2, np.trace(fisher), rtol=1e-3)


def test_every_matrix_has_statistics(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", LLAMA)
    known = _statistics(source, tmp_path / "statistics")

    matrices = {name for name, shape in open_source(source).shapes().items() if len(shape) == 2}
    assert {f"{path}.weight" for path in known} == matrices - {"model.embed_tokens.weight"}


def test_wide_inputs_of_many_experts_are_correlated_in_blocks() -> None:
    assert correlated_columns(28_672) == 2048
    assert correlated_columns(576) == 576
    # R1's 256 experts with 2,048 channels each: half a gigabyte of products in float32.
    assert correlated_columns(2048, 256) == 256


@pytest.mark.parametrize("stopped_after", [2, 3, 4, 5])
def test_a_stopped_run_goes_on_where_it_was_and_ends_the_same(
    stopped_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_fp8_checkpoint(tmp_path / "source", DEEPSEEK_V3)
    whole = _statistics(source, tmp_path / "whole")
    monkeypatch.setattr(calibration, "_GRADIENT_EVERY_S", 0.0)
    folder = tmp_path / "stopped"
    folder.mkdir()
    for event in calibrate(open_source(source), SEQUENCES, folder):
        if event.done == stopped_after:
            break
    assert not is_complete(folder)

    events = list(calibrate(open_source(source), SEQUENCES, folder))

    assert events[0].done == stopped_after
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
    resumed = _read(folder)
    assert resumed.keys() == whole.keys()
    for path, known in whole.items():
        assert mx.array_equal(resumed[path].moments, known.moments)
        for one, other in zip(resumed[path].correlations, known.correlations, strict=True):
            assert mx.array_equal(one, other)


def test_hidden_states_that_are_damaged_are_made_again(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", LLAMA)
    whole = _statistics(source, tmp_path / "whole")
    folder = tmp_path / "stopped"
    folder.mkdir()
    running = calibrate(open_source(source), SEQUENCES, folder)
    assert [next(running).done for _ in range(3)] == [0, 1, 2]
    running.close()
    (folder / "hidden-states-00002.safetensors").write_bytes(b"damaged")
    (folder / "gradient.safetensors").write_bytes(b"damaged")

    resumed = _statistics(source, folder)

    assert mx.array_equal(resumed["lm_head"].moments, whole["lm_head"].moments)


def test_what_is_written_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(write_checkpoint(tmp_path / "source", DEEPSEEK_V3))
    monkeypatch.setattr(calibration, "_GRADIENT_EVERY_S", 0.0)
    folder = tmp_path / "statistics"
    folder.mkdir()

    most = 0
    for _ in calibrate(source, SEQUENCES, folder):
        most = max(most, sum(path.stat().st_size for path in folder.glob("*.safetensors")))

    # Headers of files and moments are a good part of so little.
    needed = needs(source, sum(map(len, SEQUENCES))).disk_bytes
    assert 0.7 * most < needed < 2 * most


@pytest.mark.parametrize(
    ("room", "error", "said"),
    [
        ({"free_disk_bytes": 10_000}, DiskFull, "10.0 kB free"),
        ({"available_memory_bytes": 2**20}, DoesNotFit, "1.0 MiB are free"),
    ],
)
def test_too_little_room_is_said_before_anything_is_written(
    room: dict[str, int], error: type[R1MacError], said: str, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "source", LLAMA)

    with pytest.raises(error, match=said):
        list(calibrate_path(source, tmp_path / "statistics", FakeMachine(M2_ULTRA_192, **room)))

    assert not (tmp_path / "statistics").exists()


def test_another_text_begins_anew(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", LLAMA)
    folder = tmp_path / "statistics"
    _statistics(source, folder)
    before = json.loads((folder / RECORD_NAME).read_text())["text"]

    events = list(calibrate(open_source(source), [sequence[::-1] for sequence in SEQUENCES], folder))

    assert events[0].done == 0
    assert json.loads((folder / RECORD_NAME).read_text())["text"] != before
    assert [event.done for event in calibrate(open_source(source), [s[::-1] for s in SEQUENCES], folder)] == [4]


def _tokenizer(texts: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def test_a_language_that_the_models_tokenizer_has_not_met_is_left_out(tmp_path: Path) -> None:
    chinese = next(part for part in shipped_parts() if part.startswith("光合作用"))
    german = next(part for part in shipped_parts() if part.startswith("Der Bahnhof"))
    source = write_checkpoint(tmp_path / "source", {**LLAMA, "vocab_size": 2000})
    found = {}
    for name, learnt in {"chinese": chinese, "german": german}.items():
        tokenizer = _tokenizer([learnt], 2000)
        tokenizer.save(str(source / "tokenizer.json"))
        ids = [token_id for sequence in sequences_of(open_source(source), None) for token_id in sequence]
        found[name] = tokenizer.decode(ids)

    assert chinese.strip()[:60] in found["chinese"]
    assert german.strip()[:60] not in found["chinese"]
    assert german.strip()[:60] in found["german"]
    assert chinese.strip()[:60] not in found["german"]
    assert all("<think>" in text for text in found.values())


def test_a_language_is_known_by_the_length_of_its_tokens() -> None:
    assert is_known("an ordinary sentence of eleven words and no rare ones here", 12)
    assert not is_known("光合作用", 12)


def test_sequences_begin_with_the_token_that_the_model_is_used_to() -> None:
    assert cut_into_sequences(range(5), 2) == [[0, 1], [2, 3]]
    assert cut_into_sequences(range(5), 3, first_id=9) == [[9, 0, 1], [9, 2, 3]]
    assert cut_into_sequences(range(2), 5, first_id=9) == [[9, 0, 1]]
