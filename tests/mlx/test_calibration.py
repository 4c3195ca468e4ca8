"""Statistics of a model's inputs are those of the whole model, whatever the run was like that measured them."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from r1mac import mlx_lm_api
from r1mac.convert import calibration
from r1mac.convert.calibration import calibrate, cut_into_sequences, is_complete, is_known, shipped_parts
from r1mac.convert.input_statistics import RECORD_NAME, InputStatistics, load_statistics, statistics_file
from r1mac.convert.sources import open_source
from r1mac.prepare.calibrating import sequences_of
from tests.checkpoints import CONFIGS, DEEPSEEK_V3, LLAMA, write_checkpoint, write_fp8_checkpoint

SEQUENCES = np.random.default_rng(1).integers(0, 320, (3, 48)).tolist()


def _statistics(source: Path, folder: Path) -> dict[str, InputStatistics]:
    folder.mkdir(exist_ok=True)
    opened = open_source(source)
    events = list(calibrate(opened, SEQUENCES, folder))
    assert events[-1].done == events[-1].total == opened.config["num_hidden_layers"]
    assert is_complete(folder)
    return _read(folder)


def _read(folder: Path) -> dict[str, InputStatistics]:
    found: dict[str, InputStatistics] = {}
    for path in sorted(folder.glob("[!.]*.safetensors")):
        found |= load_statistics(path)
    return found


class Seen(list[mx.array]):
    """What one matrix of a model was given, and the experts that it was given for."""

    def __init__(self) -> None:
        super().__init__()
        self.experts: list[mx.array] = []


def _watch(model: Any, path: str) -> Seen:
    """Keep what the module at *path* of a whole model is given."""
    *parents, name = path.split(".")
    parent = model
    for part in parents:
        parent = parent[int(part)] if part.isdecimal() else parent[part]
    inner, seen = parent[name], Seen()

    class Watch(type(inner)):
        def __call__(self, x: mx.array, *arguments: Any, **options: Any) -> mx.array:
            seen.append(x)
            if arguments:
                seen.experts.append(arguments[0])
            return inner(x, *arguments, **options)

    watch = Watch.__new__(Watch)
    watch.__dict__.update(inner.__dict__)
    dict.update(watch, inner)
    parent[name] = watch
    return seen


def _whole_model(source: Path) -> Any:
    model = mlx_lm_api.load_lazily(source, {})
    model.set_dtype(mx.float32)
    return model


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("llama", "model.layers.1.mlp.down_proj"),
        ("qwen2", "model.layers.1.self_attn.o_proj"),
        ("qwen3", "model.layers.0.self_attn.k_proj"),
        ("deepseek_v3", "model.layers.2.self_attn.kv_a_proj_with_mqa"),
        ("deepseek_v3", "model.layers.2.mlp.shared_experts.down_proj"),
        ("deepseek_v3", "model.layers.1.self_attn.unembed_out"),
    ],
)
def test_second_moments_are_those_that_the_whole_model_meets(kind: str, path: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", CONFIGS[kind])
    model = _whole_model(source)
    seen = _watch(model, path)
    for sequence in SEQUENCES:
        model(mx.array([sequence]))

    known = _statistics(source, tmp_path / "statistics")[path]

    rows = mx.concatenate([x.reshape(-1, x.shape[-1]) for x in seen])
    products = rows.T @ rows / rows.shape[0]
    roots = mx.sqrt(mx.diagonal(products))
    assert known.counts.tolist() == [rows.shape[0]]
    assert mx.allclose(known.moments[0], mx.diagonal(products), rtol=1e-3)
    assert mx.allclose(known.correlations[0].astype(mx.float32), products / roots / roots[:, None], atol=2e-3)


def test_each_expert_is_told_by_its_own_tokens(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3)
    path = "model.layers.2.mlp.switch_mlp.down_proj"
    model = _whole_model(source)
    seen = _watch(model, path)
    for sequence in SEQUENCES:
        model(mx.array([sequence]))
    rows = mx.concatenate([x.reshape(-1, x.shape[-1]) for x in seen])
    experts = mx.concatenate([numbers.reshape(-1) for numbers in seen.experts])

    known = _statistics(source, tmp_path / "statistics")[path]

    assert int(mx.sum(known.counts).item()) == 3 * 48 * DEEPSEEK_V3["num_experts_per_tok"]
    for expert in range(DEEPSEEK_V3["n_routed_experts"]):
        mine = np.array(rows)[np.array(experts) == expert]
        assert known.counts[expert].item() == len(mine)
        if len(mine):
            np.testing.assert_allclose(np.array(known.moments[expert]), (mine**2).mean(axis=0), rtol=1e-3)
    few, all_of_them = int(mx.argmin(known.counts).item()), mx.sum(known.counts)
    common = mx.sum(known.moments * known.counts[:, None], axis=0) / all_of_them
    blended = (known.counts[few] * known.moments[few] + 64 * common) / (known.counts[few] + 64)
    assert mx.allclose(known.slice_moments(few), blended)


def test_keys_of_latent_attention_are_weighed_by_the_queries_that_meet_them(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3)
    model = _whole_model(source)
    inputs = _watch(model, "model.layers.0.self_attn.q_b_proj")
    for sequence in SEQUENCES:
        model(mx.array([sequence]))
    weight = model.model.layers[0].self_attn.q_b_proj.weight
    heads, nope = DEEPSEEK_V3["num_attention_heads"], DEEPSEEK_V3["qk_nope_head_dim"]
    queries = mx.concatenate([x[0] @ weight.T for x in inputs]).reshape(3 * 48, heads, -1)[..., :nope]

    known = _statistics(source, tmp_path / "statistics")["model.layers.0.self_attn.embed_q"]

    assert mx.allclose(known.moments, mx.mean(queries * queries, axis=0), rtol=1e-3)


def test_every_matrix_has_statistics_and_those_with_one_input_share_them(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", LLAMA)
    known = _statistics(source, tmp_path / "statistics")

    matrices = {name for name, shape in open_source(source).shapes().items() if len(shape) == 2}
    assert {f"{path}.weight" for path in known} == matrices - {"model.embed_tokens.weight"}
    stored = mx.load(str(statistics_file(tmp_path / "statistics", "model.layers.0.x")))
    assert sum(name.endswith(".moments") for name in stored) == 4  # q k v, o, gate up, down


def test_a_stopped_run_goes_on_where_it_was_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_fp8_checkpoint(tmp_path / "source", DEEPSEEK_V3)
    whole = _statistics(source, tmp_path / "whole")
    monkeypatch.setattr(calibration, "_STATES_EVERY_S", 0.0)
    folder = tmp_path / "stopped"
    folder.mkdir()
    for event in calibrate(open_source(source), SEQUENCES, folder):
        if event.done == 2:
            break
    assert not is_complete(folder)

    events = list(calibrate(open_source(source), SEQUENCES, folder))

    assert events[0].done == 2
    resumed = _read(folder)
    assert resumed.keys() == whole.keys()
    for path, known in whole.items():
        assert mx.array_equal(resumed[path].moments, known.moments)


def test_another_text_begins_anew(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", LLAMA)
    folder = tmp_path / "statistics"
    _statistics(source, folder)
    before = json.loads((folder / RECORD_NAME).read_text())["text"]

    events = list(calibrate(open_source(source), [sequence[::-1] for sequence in SEQUENCES], folder))

    assert events[0].done == 0
    assert json.loads((folder / RECORD_NAME).read_text())["text"] != before
    assert [event.done for event in calibrate(open_source(source), [s[::-1] for s in SEQUENCES], folder)] == [2]


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
