"""Adapters that PEFT itself wrote, beside what PEFT itself makes of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1mac.convert.sources import open_source
from tests.adapters import assert_rounded, merged_rows
from tests.checkpoints import LLAMA, QWEN2, QWEN3, write_checkpoint

torch = pytest.importorskip("torch", reason="torch is a gigabyte that nothing else here needs")
peft = pytest.importorskip("peft", reason="peft needs torch")

# PEFT warns of tied models and of embeddings that it saves whole: both are what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CONFIGS = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3}
ADAPTERS: dict[str, dict[str, Any]] = {
    "two modules": {"target_modules": ["q_proj", "down_proj"]},
    "rsLoRA, ranks and alphas of their own": {
        "target_modules": "all-linear",
        "use_rslora": True,
        "rank_pattern": {"q_proj": 8, "layers.1.mlp.up_proj": 2},
        "alpha_pattern": {"k_proj": 64, r"layers\.0\..*gate_proj": 3},
    },
    "DoRA": {"target_modules": ["q_proj", "o_proj", "up_proj"], "use_dora": True},
    "one layer": {"target_modules": ["v_proj"], "layers_to_transform": [1]},
    "modules saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "gaussian start": {"target_modules": ["k_proj"], "init_lora_weights": "gaussian"},
}


def _trained(base: Path, **settings: Any) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 16, **settings}))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return adapted.eval()


def _assert_merged(base: Path, adapter: Path, state: dict[str, Any]) -> None:
    source = open_source(base, [adapter])
    for name in source.shapes():
        assert_rounded(merged_rows(source, name), state[name].numpy())


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_merge_equals_merge_and_unload(kind: str, adapter: str, tmp_path: Path) -> None:
    """Every tensor of the merged stream is PEFT's own merge in float32, rounded once to the base's bfloat16."""
    base = write_checkpoint(tmp_path / "base", CONFIGS[kind])
    model = _trained(base, **ADAPTERS[adapter])
    model.save_pretrained(tmp_path / "adapter")

    _assert_merged(base, tmp_path / "adapter", model.merge_and_unload().state_dict())


@pytest.mark.parametrize("settings", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}])
def test_trained_biases_are_merged(settings: dict[str, Any], tmp_path: Path) -> None:
    """Biases that were trained with the adapter, its own or the base's, are those of the merged model."""
    base = write_checkpoint(tmp_path / "base", QWEN2)
    model = _trained(base, target_modules=["q_proj", "v_proj"], **settings)
    model.save_pretrained(tmp_path / "adapter")

    _assert_merged(base, tmp_path / "adapter", model.merge_and_unload().state_dict())


def test_an_untied_models_embedding_and_head_are_merged(tmp_path: Path) -> None:
    """LoRA on the embedding and on the head is merged into each."""
    base = write_checkpoint(tmp_path / "base", LLAMA)
    model = _trained(base, target_modules=["embed_tokens", "lm_head", "q_proj"])
    model.save_pretrained(tmp_path / "adapter")

    _assert_merged(base, tmp_path / "adapter", model.merge_and_unload().state_dict())


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_a_tied_model_computes_what_was_trained(module: str, tmp_path: Path) -> None:
    """Of a tied model PEFT trains the embedding or the head alone, and its merge changes both.

    What was trained counts: the merged stream has them as two, and computes the adapter's own logits.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    base = write_checkpoint(tmp_path / "base", QWEN2)
    model = _trained(base, target_modules=[module])
    model.save_pretrained(tmp_path / "adapter")
    token_ids = torch.tensor([[1, 5, 9, 200]])

    source = open_source(base, [tmp_path / "adapter"])

    state = {name: torch.from_numpy(merged_rows(source, name)) for name in source.shapes()}
    config = {key: value for key, value in source.config.items() if key != "torch_dtype"}
    merged = Qwen2ForCausalLM(Qwen2Config(**config)).float().eval()
    merged.load_state_dict(state)
    with torch.no_grad():
        found, expected = merged(token_ids).logits.numpy(), model(token_ids).logits.numpy()
    assert source.config["tie_word_embeddings"] is False
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_a_resized_vocabulary_is_taken_over(tmp_path: Path) -> None:
    """Tokens that a finetune added: the merged model has its rows, and config.json their number."""
    from transformers import AutoModelForCausalLM

    base = write_checkpoint(tmp_path / "base", LLAMA)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(352)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    state = adapted.merge_and_unload().state_dict()

    source = open_source(base, [tmp_path / "adapter"])

    assert source.config["vocab_size"] == 352
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert_rounded(merged_rows(source, name), state[name].numpy())


@pytest.mark.parametrize("settings", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}])
def test_an_adapter_whose_start_changed_the_base_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    """PiSSA and OLoRA train against a changed base: merging into the one on the disk would be wrong silently."""
    from r1mac.errors import BadRecipe

    base = write_checkpoint(tmp_path / "base", LLAMA)
    _trained(base, target_modules=["q_proj"], **settings).save_pretrained(tmp_path / "adapter")

    with pytest.raises(BadRecipe, match=settings["init_lora_weights"]):
        open_source(base, [tmp_path / "adapter"])
