"""GGUF files of DeepSeek R1 itself and of Qwen3: logits beside the original weights', and files in parts."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter

from r1mac import mlx_lm_api
from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from r1mac.errors import BadCheckpoint
from tests.checkpoints import hub_weights, write_checkpoint
from tests.ggufs import GGUF_DEEPSEEK, GGUF_LLAMA, GGUF_QWEN3, with_experts_stacked, with_latents_split, write_gguf

TOKEN_IDS = [0, 17, 200, 3, 42, 42, 99, 7]


def _converted(source: Path, folder: Path) -> Path:
    folder.mkdir()
    for _ in convert(open_source(source), plain(bits=16, dtype="float32"), folder):
        pass
    return folder


def _logits(folder: Path) -> np.ndarray:
    return np.array(mlx_lm_api.load_lazily(folder, {})(mx.array([TOKEN_IDS]))[0])


def _deepseek_weights(*, in_halves: bool) -> dict[str, mx.array]:
    weights = with_experts_stacked(GGUF_DEEPSEEK, hub_weights(GGUF_DEEPSEEK))
    return with_latents_split(GGUF_DEEPSEEK, weights) if in_halves else weights


@pytest.mark.parametrize("in_halves", [True, False])
def test_logits_of_deepseek_are_those_of_the_original_weights(in_halves: bool, tmp_path: Path) -> None:
    """R1 from GGUF computes what its safetensors compute, with MLA in halves (new files) or whole (old ones)."""
    write_gguf(tmp_path / "m.gguf", GGUF_DEEPSEEK, _deepseek_weights(in_halves=in_halves))
    original = write_checkpoint(tmp_path / "original", GGUF_DEEPSEEK)

    found = _logits(_converted(tmp_path / "m.gguf", tmp_path / "out"))

    assert np.array_equal(found, _logits(_converted(original, tmp_path / "expected")))


def test_logits_of_qwen3_are_those_of_the_original_weights(tmp_path: Path) -> None:
    """A Qwen3 distill from GGUF computes what its safetensors compute."""
    write_gguf(tmp_path / "m.gguf", GGUF_QWEN3, hub_weights(GGUF_QWEN3))
    original = write_checkpoint(tmp_path / "original", GGUF_QWEN3)

    found = _logits(_converted(tmp_path / "m.gguf", tmp_path / "out"))

    assert np.array_equal(found, _logits(_converted(original, tmp_path / "expected")))


@pytest.mark.parametrize("config", [GGUF_DEEPSEEK, GGUF_QWEN3], ids=["deepseek2", "qwen3"])
def test_logits_equal_transformers(config: dict, tmp_path: Path) -> None:
    """The same holds beside transformers (where torch is installed), YaRN's scale of the attention included."""
    torch = pytest.importorskip("torch", reason="torch is a gigabyte that nothing else here needs")
    from transformers import AutoModelForCausalLM

    weights = hub_weights(config)
    stored = _deepseek_weights(in_halves=True) if config is GGUF_DEEPSEEK else weights
    write_gguf(tmp_path / "m.gguf", config, stored)
    original = write_checkpoint(tmp_path / "original", config, weights=weights)
    model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32, attn_implementation="eager").eval()

    found = _logits(_converted(tmp_path / "m.gguf", tmp_path / "out"))

    with torch.no_grad():
        expected = model(torch.tensor([TOKEN_IDS])).logits[0].numpy()
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_K, Kind.Q6_K, Kind.BF16])
def test_tensors_of_deepseek_equal_the_librarys_own_dequantisation(kind: Kind, tmp_path: Path) -> None:
    """Every tensor, stacked experts included, is exactly what the gguf library makes of it."""
    truth = write_gguf(tmp_path / "m.gguf", GGUF_DEEPSEEK, _deepseek_weights(in_halves=True), kind=kind)

    tensors = mx.load(str(_converted(tmp_path / "m.gguf", tmp_path / "out") / "model.safetensors"))

    assert tensors.keys() == truth.keys()
    for name, expected in truth.items():
        assert np.array_equal(np.array(tensors[name]), expected), name


def test_the_config_is_the_originals(tmp_path: Path) -> None:
    """config.json says of the shape what the original's said; the file's log multiplier is a tenth of mscale."""
    write_gguf(tmp_path / "m.gguf", GGUF_DEEPSEEK, _deepseek_weights(in_halves=True))

    config = open_source(tmp_path / "m.gguf").config

    assert config["rope_scaling"].pop("type") == "yarn"
    for key in ("factor", "mscale", "mscale_all_dim", "original_max_position_embeddings"):
        assert config["rope_scaling"][key] == GGUF_DEEPSEEK["rope_scaling"][key], key
    for key in set(GGUF_DEEPSEEK) - {"rope_scaling", "torch_dtype", "eos_token_id"}:
        assert config[key] == GGUF_DEEPSEEK[key], key


def test_the_attention_factor_of_qwen3_is_kept(tmp_path: Path) -> None:
    """R1-0528-Qwen3-8B's YaRN has an attention factor, without which its logits are 1.3 times too large."""
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768, "attn_factor": 0.8782488562869419}
    config = {**GGUF_QWEN3, "rope_scaling": scaling}
    write_gguf(tmp_path / "m.gguf", config, hub_weights(GGUF_QWEN3))

    found = open_source(tmp_path / "m.gguf").config["rope_scaling"]

    assert found["type"] == "yarn"
    assert found["attn_factor"] == pytest.approx(scaling["attn_factor"], rel=1e-5)


def test_experts_chosen_by_a_softmax_are_refused(tmp_path: Path) -> None:
    """A DeepSeek before V3 is told as such, and not converted to a model that chooses other experts."""
    config = {**GGUF_DEEPSEEK, "scoring_func": "softmax"}
    write_gguf(tmp_path / "m.gguf", config, _deepseek_weights(in_halves=True))
    with pytest.raises(BadCheckpoint, match="sigmoid"):
        open_source(tmp_path / "m.gguf")


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    """A file that holds DeepSeek's prediction layer too converts to the model itself."""
    weights = _deepseek_weights(in_halves=True)

    def prediction_layer(writer: GGUFWriter) -> None:
        writer.add_nextn_predict_layers(1)
        writer.add_tensor("blk.2.nextn.eh_proj.weight", np.zeros((4, 4), np.float32))
        writer.add_tensor("blk.2.attn_norm.weight", np.zeros(4, np.float32))

    config = {**GGUF_DEEPSEEK, "num_hidden_layers": 3}
    write_gguf(tmp_path / "m.gguf", config, weights, extra=prediction_layer)

    source = open_source(tmp_path / "m.gguf")

    assert source.config["num_hidden_layers"] == 2
    assert source.shapes().keys() == weights.keys()


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Return a folder with a llama model in three parts."""
    (tmp_path / "parts").mkdir()
    write_gguf(tmp_path / "parts" / "m.gguf", GGUF_LLAMA, hub_weights(GGUF_LLAMA), split_tensors=8)
    return tmp_path / "parts"


@pytest.mark.parametrize("name", ["", "m-00001-of-00003.gguf", "m-00003-of-00003.gguf"])
def test_a_model_in_parts_is_read_whole(name: str, parts: Path, tmp_path: Path) -> None:
    """Any part, or the folder, stands for the whole model."""
    write_gguf(tmp_path / "whole.gguf", GGUF_LLAMA, hub_weights(GGUF_LLAMA))

    found = mx.load(str(_converted(parts / name, tmp_path / "out") / "model.safetensors"))

    expected = mx.load(str(_converted(tmp_path / "whole.gguf", tmp_path / "expected") / "model.safetensors"))
    assert found.keys() == expected.keys()
    assert all(mx.array_equal(found[name], expected[name]) for name in expected)


def test_a_missing_part_is_named(parts: Path) -> None:
    """A part that is not there is named, whichever part the user names."""
    (parts / "m-00002-of-00003.gguf").unlink()

    with pytest.raises(BadCheckpoint, match=r"lacks 1 of the 3 parts .* m-00002-of-00003\.gguf"):
        open_source(parts / "m-00003-of-00003.gguf")


def test_parts_that_were_mixed_up_are_refused(parts: Path) -> None:
    """Two copies of one part, or a part under another number, are noticed by what the files say of themselves."""
    shutil.copy(parts / "m-00001-of-00003.gguf", parts / "m-00002-of-00003.gguf")

    with pytest.raises(BadCheckpoint, match=r"m-00002-of-00003\.gguf is part 1"):
        open_source(parts)


def test_two_models_in_a_folder_are_not_guessed_between(parts: Path) -> None:
    """A folder with two GGUF models asks which of them is meant."""
    write_gguf(parts / "other.gguf", GGUF_LLAMA, hub_weights(GGUF_LLAMA))

    with pytest.raises(BadCheckpoint, match="holds 2 GGUF models"):
        open_source(parts)


def test_deepseeks_words_are_split_as_deepseek_does(tmp_path: Path) -> None:
    """Digits go by threes from the left, Chinese and Latin apart, punctuation with the word that follows it."""
    from tokenizers import Tokenizer

    def deepseek(writer: GGUFWriter) -> None:
        writer.kv_data[0]["tokenizer.ggml.pre"].value = "deepseek-v3"

    write_gguf(tmp_path / "m.gguf", GGUF_DEEPSEEK, _deepseek_weights(in_halves=True), extra=deepseek)
    out = _converted(tmp_path / "m.gguf", tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))

    text = "2026年x+1234567 über .join"
    pieces = [text[start:stop] for _, (start, stop) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    assert pieces == ["202", "6", "年", "x", "+", "123", "456", "7", " über", " .", "join"]
    assert json.loads((out / "tokenizer_config.json").read_text())["add_bos_token"] is True
