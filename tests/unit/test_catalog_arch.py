"""Shapes: every figure of the family from its config, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.catalog.arch import GroupedQueryAttention, LatentAttention, parse_arch
from r1mac.catalog.models import all_models
from tests.checkpoints import CONFIGS, DEEPSEEK_V3, LLAMA, QWEN2, QWEN3

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "mlx_sizes.json").read_text(encoding="utf-8"))
ARCHS = {model.key: model.arch for model in all_models()}


def test_the_vectors_speak_about_the_whole_family():
    """Every member of the family has an entry among the vectors."""
    assert VECTORS.keys() == ARCHS.keys() - {"demo", "tiny"}


@pytest.mark.parametrize("key", VECTORS)
def test_parameters_are_those_of_the_published_models(key):
    """The sum over the shapes is the parameter count that mlx-lm's own modules have."""
    assert ARCHS[key].parameter_count == VECTORS[key]["parameters"]


@pytest.mark.parametrize("key", VECTORS)
def test_active_parameters_are_those_of_the_published_models(key):
    """Decoding a token reads all of a dense model, and of a mixture the chosen experts and no embedding."""
    assert ARCHS[key].active_parameter_count == VECTORS[key]["active"]


def test_671b_reads_36_6_billion_parameters_a_token():
    """The published figure of 37B active parameters is the sum of what one token reads."""
    dense_layers = 3 * 3 * 7168 * 18432  # three layers of three matrices
    experts = 58 * (8 + 1) * 3 * 7168 * 2048  # eight routed, one shared
    routers = 58 * 256 * 7168
    # q_a, q_b, kv_a, embed_q, unembed_out, o and the two norms between them
    q = 7168 * 1536 + 1536 + 1536 * 128 * 192
    kv = 7168 * 576 + 512 + 128 * 512 * 128 + 128 * 128 * 512
    attention = 61 * (q + kv + 128 * 128 * 7168)
    norms = 61 * 2 * 7168 + 7168
    head = 129280 * 7168

    assert ARCHS["r1-671b"].active_parameter_count == dense_layers + experts + routers + attention + norms + head


def test_the_tied_demonstration_model_has_its_published_size():
    """SmolLM2-135M has 134,515,008 parameters: the embedding is counted once."""
    assert ARCHS["demo"].parameter_count == 134_515_008
    assert ARCHS["demo"].tied_embeddings


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_tensors_are_those_of_mlx_lms_model(config):
    """Names and shapes of all tensors are those of the module that mlx-lm builds from the same config."""
    from mlx.utils import tree_flatten

    from r1mac import mlx_lm_api

    module = mlx_lm_api.model_skeleton(dict(config))
    theirs = {name: tuple(values.shape) for name, values in tree_flatten(module.parameters())}

    assert {tensor.name: tensor.shape for tensor in parse_arch(config).tensors} == theirs


def test_only_qwen2_has_biases_and_only_qwen3_norms_its_heads():
    """What the model types differ in is known from their name: qkv biases and head norms."""
    names = {kind: {tensor.name for tensor in parse_arch(config).tensors} for kind, config in CONFIGS.items()}
    biased = {kind for kind in names if "model.layers.0.self_attn.q_proj.bias" in names[kind]}
    normed = {kind for kind in names if "model.layers.0.self_attn.q_norm.weight" in names[kind]}

    assert biased == {"qwen2"}
    assert normed == {"qwen3"}


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        (LLAMA, False),
        (QWEN2, True),
        ({**LLAMA, "tie_word_embeddings": None}, False),
        ({name: value for name, value in LLAMA.items() if name != "tie_word_embeddings"}, True),
        ({name: value for name, value in DEEPSEEK_V3.items() if name != "tie_word_embeddings"}, False),
    ],
)
def test_a_tied_model_has_no_head(config, tied):
    """Where the embedding is the head, there is no lm_head; unsaid, llama and qwen tie and DeepSeek does not."""
    arch = parse_arch(config)

    assert arch.tied_embeddings == tied
    assert ("lm_head.weight" in {tensor.name for tensor in arch.tensors}) != tied


def test_head_dimension_and_kv_heads_have_defaults():
    """Unsaid, a head is a share of the hidden size and every head has keys and values of its own."""
    config = {**LLAMA, "num_key_value_heads": None}
    config.pop("head_dim", None)

    attention = parse_arch(config).attention

    assert attention == GroupedQueryAttention(head_count=4, kv_head_count=4, head_dim=32)  # 128 / 4
    assert attention.cached_values_per_token == 256  # keys and values x 4 heads x 32


def test_mla_caches_one_latent_for_all_heads():
    """DeepSeek's cache is the latent and the rotary key, however many heads there are."""
    attention = parse_arch({**DEEPSEEK_V3, "num_attention_heads": 128}).attention

    assert isinstance(attention, LatentAttention)
    assert attention.cached_values_per_token == 160  # 128 + 32


def test_experts_are_in_the_layers_that_the_config_says():
    """Layers before first_k_dense_replace are dense, and then each whose number moe_layer_freq divides is a mixture."""
    arch = parse_arch({**DEEPSEEK_V3, "num_hidden_layers": 6, "first_k_dense_replace": 1, "moe_layer_freq": 2})
    routed = [tensor.name for tensor in arch.tensors if tensor.name.endswith("mlp.gate.weight")]

    assert routed == ["model.layers.2.mlp.gate.weight", "model.layers.4.mlp.gate.weight"]


def test_a_token_reads_its_share_of_the_experts():
    """Of a stack of experts a token reads active/routed, of an untied embedding one row."""
    shares = {tensor.name: tensor.read_share for tensor in parse_arch(DEEPSEEK_V3).tensors}

    assert shares["model.layers.1.mlp.switch_mlp.up_proj.weight"] == 2 / 8
    assert shares["model.layers.1.mlp.shared_experts.up_proj.weight"] == 1
    assert shares["model.embed_tokens.weight"] == 1 / 320
    assert shares["lm_head.weight"] == 1


REQUIRED = {
    "llama": ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size",
              "max_position_embeddings"],
    "deepseek_v3": ["kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "num_experts_per_tok",
                    "moe_intermediate_size"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in REQUIRED.items() for name in names])
def test_a_missing_field_is_named(kind, name):
    """A config without a field that the architecture needs is a KeyError with the field's name."""
    config = {key: value for key, value in CONFIGS[kind].items() if key != name}

    with pytest.raises(KeyError) as caught:
        parse_arch(config)

    assert caught.value.args == (name,)


@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True, None, [8]])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in REQUIRED.items() for name in names])
def test_a_field_that_is_no_count_is_named(kind, name, value):
    """A field that is not a positive whole number is a ValueError with its name and value."""
    with pytest.raises(ValueError, match=f"^{name} is ") as caught:
        parse_arch({**CONFIGS[kind], name: value})

    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", ["first_k_dense_replace", "moe_layer_freq", "n_shared_experts"])
@pytest.mark.parametrize("value", ["x", [1], -1, 1.5, {}])
def test_nonsense_about_the_experts_is_named(name, value):
    """The fields that place the experts are checked like the others."""
    with pytest.raises(ValueError, match=f"^{name} is "):
        parse_arch({**DEEPSEEK_V3, name: value})


@pytest.mark.parametrize("model_type", [None, "", "mistral", "deepseek_v2", "LLAMA", 7, ["llama"]])
def test_an_unknown_model_type_is_refused_with_the_known_ones(model_type):
    """The text names the type and lists what r1mac knows."""
    with pytest.raises(ValueError, match="llama, qwen2, qwen3, deepseek_v3") as caught:
        parse_arch({**LLAMA, "model_type": model_type})

    assert repr(model_type) in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
SHAPE_FIELDS = sorted({
    name for config in CONFIGS.values() for name in config if name not in {"architectures", "torch_dtype"}
})  # fmt: skip


def test_more_heads_than_there_is_to_share_are_refused() -> None:
    with pytest.raises(ValueError, match="num_attention_heads is 129, and hidden_size 128"):
        parse_arch({**CONFIGS["llama"], "num_attention_heads": 129})


@given(st.sampled_from(sorted(CONFIGS)), st.dictionaries(st.sampled_from(SHAPE_FIELDS), JSON, max_size=4))
def test_any_config_is_read_or_refused(kind: str, changes: dict[str, Any]) -> None:
    """Whatever JSON a config's fields hold, the answer is a shape, a KeyError or a ValueError."""
    try:
        arch = parse_arch({**CONFIGS[kind], **changes})
    except (KeyError, ValueError):
        return

    assert arch.layer_count > 0
    assert arch.attention.cached_values_per_token > 0


def test_qwen3_heads_need_not_be_a_share_of_the_hidden_size():
    """A head dimension that the config says is taken, whatever hidden size and heads are."""
    assert parse_arch({**QWEN3, "head_dim": 64}).attention.cached_values_per_token == 256  # 2 x 2 heads x 64
