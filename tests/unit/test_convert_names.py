"""Names: which tensors of a source make one of the MLX model."""

import re

import pytest

from r1mac.catalog.arch import parse_arch
from r1mac.convert.names import Sourcing, from_gguf, sourcing_of, unused_names
from tests.checkpoints import CONFIGS, hub_weights

LAYER = "model.layers.3"


@pytest.mark.parametrize("name", ["model.norm.weight", f"{LAYER}.self_attn.q_proj.weight", "lm_head.weight"])
def test_a_tensor_of_the_same_name_is_taken_as_it_is(name):
    """What the source has under the same name is that tensor."""
    assert sourcing_of(name, {name}, expert_count=0) == Sourcing("same", (name,))


@pytest.mark.parametrize("projection", ["gate_proj", "up_proj", "down_proj"])
def test_experts_are_stacked_in_the_order_of_their_numbers(projection):
    """A stack is made of all experts by number: 2 comes before 10."""
    sourcing = sourcing_of(f"{LAYER}.mlp.switch_mlp.{projection}.weight", set(), expert_count=12)

    assert sourcing.kind == "stack"
    assert sourcing.names == tuple(f"{LAYER}.mlp.experts.{index}.{projection}.weight" for index in range(12))


@pytest.mark.parametrize(("half", "kind"), [("embed_q", "keys"), ("unembed_out", "values")])
def test_both_halves_of_mla_come_from_kv_b_proj(half, kind):
    """The two matrices that MLX has for MLA are the halves of one of the Hub's."""
    sourcing = sourcing_of(f"{LAYER}.self_attn.{half}.weight", set(), expert_count=0)

    assert sourcing == Sourcing(kind, (f"{LAYER}.self_attn.kv_b_proj.weight",))


@pytest.mark.parametrize("name", [f"{LAYER}.mlp.switch_mlp.up_proj.weight", f"{LAYER}.self_attn.embed_q.weight"])
def test_what_an_mlx_model_has_made_already_is_not_made_again(name):
    """A source that is an MLX model has stacks and halves under their own names."""
    assert sourcing_of(name, {name}, expert_count=8) == Sourcing("same", (name,))


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_tensor_of_a_checkpoint_is_used_once(kind):
    """For every architecture the sourcings name all the Hub's tensors and no others.

    Each is named once, but for kv_b_proj, of which both halves are made.
    """
    config = CONFIGS[kind]
    available = set(hub_weights(config))
    experts = config.get("n_routed_experts", 0)

    used = [
        name
        for tensor in parse_arch(config).tensors
        for name in sourcing_of(tensor.name, available, expert_count=experts).names
    ]

    assert set(used) == available
    assert {name for name in used if used.count(name) > 1} == {name for name in available if "kv_b_proj" in name}


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.61.enorm.weight",
        "model.layers.61.mlp.experts.0.up_proj.weight",
        "model.layers.100.input_layernorm.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
    ],
)
def test_what_the_model_leaves_out_is_known(name):
    """Rotary frequencies and layers behind the last, DeepSeek's prediction layer, are left out on purpose."""
    assert unused_names([name], layer_count=61, tied_embeddings=False) == {name}


@pytest.mark.parametrize(
    "name", ["model.layers.60.input_layernorm.weight", "model.layers.6.x.weight", "extra.weight", "lm_head.weight"]
)
def test_nothing_else_is_left_out(name):
    """Tensors of the model, and names that nobody knows, are not silently dropped."""
    assert unused_names(iter([name]), layer_count=61, tied_embeddings=False) == set()


def test_the_head_of_a_tied_model_is_left_out():
    """Only where the embedding is the head, lm_head is left out."""
    assert unused_names(["lm_head.weight", "model.norm.weight"], layer_count=2, tied_embeddings=True) == {
        "lm_head.weight"
    }


GGUF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
    "blk.7.ffn_norm.weight": "model.layers.7.post_attention_layernorm.weight",
    "blk.27.attn_q.weight": "model.layers.27.self_attn.q_proj.weight",
    "blk.27.attn_q.bias": "model.layers.27.self_attn.q_proj.bias",
    "blk.1.attn_k.bias": "model.layers.1.self_attn.k_proj.bias",
    "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
    "blk.100.attn_output.weight": "model.layers.100.self_attn.o_proj.weight",
    "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
    "blk.0.ffn_up.weight": "model.layers.0.mlp.up_proj.weight",
    "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
}


@pytest.mark.parametrize(("gguf_name", "name"), GGUF_NAMES.items())
def test_gguf_names_have_their_hugging_face_name(gguf_name, name):
    """Every tensor of a llama or qwen2 GGUF file has the Hub's name."""
    assert from_gguf(gguf_name) == name


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_gguf_names_are_llama_cpps_own(kind):
    """The names are those of the table that llama.cpp's converter writes with."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH[kind.upper()], 2)
    hub_names = [tensor.name for tensor in parse_arch(CONFIGS[kind]).tensors]

    assert {from_gguf(names.get_name(name, (".weight", ".bias")), kind) for name in hub_names} == set(hub_names)


def test_gguf_names_of_deepseek_are_llama_cpps_own():
    """So are DeepSeek's, whose experts llama.cpp names as one tensor and MLA's matrix whole or in halves."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.DEEPSEEK2, 3)
    for name in hub_weights(CONFIGS["deepseek_v3"]):
        whole = re.sub(r"experts\.\d+", "experts", name)
        gguf_name = names.get_name(
            whole.replace("e_score_correction_bias", "e_score_correction.bias"), (".weight", ".bias")
        )
        assert gguf_name is not None, name
        assert from_gguf(gguf_name, "deepseek2") == whole.replace(".mlp.experts.", ".mlp.switch_mlp."), name
    for half, mlx_name in (("k", "embed_q"), ("v", "unembed_out")):
        gguf_name = names.get_name(f"model.layers.0.self_attn.{half}_b_proj.weight", (".weight", ".bias"))
        assert from_gguf(gguf_name, "deepseek2") == f"model.layers.0.self_attn.{mlx_name}.weight"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "rope_freqs.weight",
        "blk.0.attn_q_norm.weight",
        "blk.0.ffn_gate_exps.weight",
        "blk.x.attn_q.weight",
        "blk.0.attn_q",
        "blk.0.attn_q.weight.scale",
        "x.blk.0.attn_q.weight",
        "token_embd.bias",
    ],
)
def test_an_unknown_gguf_name_has_none(name):
    """A tensor that no llama or qwen2 model has is not given a name that resembles it."""
    assert from_gguf(name) is None
