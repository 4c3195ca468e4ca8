"""The shape of a model: from config.json to tensors, parameters and what one token costs.

Every figure is computed from the shapes, never looked up by a model's name. The tensor list is that of the
MLX model (stacked experts, MLA's kv_b split in two), which is what is stored and what sits in memory.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal, NamedTuple

_MAX_LAYERS = 10_000
_EMBEDDING = "model.embed_tokens.weight"

_QKV = frozenset({"q_proj", "k_proj", "v_proj"})
_GATED = frozenset({"gate_proj", "up_proj", "down_proj"})
_LATENT_BIASED = frozenset({"q_a_proj", "kv_a_proj_with_mqa", "o_proj"})

SUPPORTED_MODEL_TYPES = ("llama", "qwen2", "qwen3", "deepseek_v3")


class GroupedQueryAttention(NamedTuple):
    """Keys and values of *kv_head_count* heads are cached."""

    head_count: int
    kv_head_count: int
    head_dim: int

    @property
    def cached_values_per_token(self) -> int:
        """Values that one token adds to one layer's cache."""
        return 2 * self.kv_head_count * self.head_dim


class LatentAttention(NamedTuple):
    """DeepSeek's MLA: one latent and one rotary key are cached for all heads."""

    head_count: int
    q_lora_rank: int | None
    kv_lora_rank: int
    rope_head_dim: int
    nope_head_dim: int
    value_head_dim: int

    @property
    def cached_values_per_token(self) -> int:
        """Values that one token adds to one layer's cache."""
        return self.kv_lora_rank + self.rope_head_dim


class ExpertSpec(NamedTuple):
    """The mixture of experts of the layers from *first_layer* on, chosen among the best of *group_count* groups."""

    routed_count: int
    shared_count: int
    active_count: int
    intermediate_size: int
    first_layer: int
    layer_stride: int
    group_count: int = 1


class TensorShape(NamedTuple):
    """One tensor of the MLX model.

    Attributes:
        name: its path, such as ``model.layers.0.self_attn.q_proj.weight``.
        shape: as stored unquantised.
        role: ``matrix`` may be quantised, ``vector`` never is, ``router`` neither,
            ``float32`` is kept in that type.
        read_share: the share of it that decoding one token reads (routed experts: a few of many;
            the embedding: one row).
    """

    name: str
    shape: tuple[int, ...]
    role: Literal["matrix", "vector", "router", "float32"] = "vector"
    read_share: float = 1.0

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class ArchSpec:
    """Shape facts of one model, from its config.json.

    Attributes:
        biased: projections that have a bias.
        prediction_layer_count: layers behind the last one that predict further tokens (DeepSeek's MTP). They are no
            part of the model that is run, and count in none of the figures here.
    """

    model_type: str
    layer_count: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_context_tokens: int
    tied_embeddings: bool
    attention: GroupedQueryAttention | LatentAttention
    experts: ExpertSpec | None
    biased: frozenset[str]
    qk_norm: bool
    prediction_layer_count: int = 0

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return "q_proj" in self.biased

    @cached_property
    def tensors(self) -> tuple[TensorShape, ...]:
        """All tensors of the MLX model."""
        layers = (tensor for index in range(self.layer_count) for tensor in _layer_tensors(self, index))
        return (*_top_tensors(self), *layers)

    @cached_property
    def counted_tensors(self) -> tuple[tuple[int, TensorShape], ...]:
        """How often each different tensor occurs: one dense and one expert layer stand for all of their kind."""
        by_kind: dict[bool, list[int]] = {}
        for index in range(self.layer_count):
            by_kind.setdefault(_has_experts(self, index), []).append(index)
        layers = ((len(alike), tensor) for alike in by_kind.values() for tensor in _layer_tensors(self, alike[0]))
        return (*((1, tensor) for tensor in _top_tensors(self)), *layers)

    @cached_property
    def parameter_count(self) -> int:
        """All parameters."""
        return sum(count * tensor.size for count, tensor in self.counted_tensors)

    @cached_property
    def active_parameter_count(self) -> int:
        """Parameters read to decode one token, without the embedding; a dense model counts all of them.

        A router's correction bias is left out, as in DeepSeek's own figure.
        """
        if self.experts is None:
            return self.parameter_count
        return round(
            sum(
                count * tensor.size * tensor.read_share
                for count, tensor in self.counted_tensors
                if tensor.role != "float32" and tensor.name != _EMBEDDING
            )
        )


def parse_arch(config: Mapping[str, Any]) -> ArchSpec:
    """Build an ArchSpec from the contents of a config.json.

    Raises:
        KeyError: a field that the architecture needs is absent; the exception's argument is its name.
        ValueError: the model type is not one of SUPPORTED_MODEL_TYPES, or a field is not a positive integer.
    """
    model_type = config.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise ValueError(f"model type {model_type!r} is not one of {', '.join(SUPPORTED_MODEL_TYPES)}")
    head_count = _count(config, "num_attention_heads")
    hidden_size = _count(config, "hidden_size")
    attention: GroupedQueryAttention | LatentAttention
    if model_type == "deepseek_v3":
        attention = LatentAttention(
            head_count=head_count,
            q_lora_rank=_count(config, "q_lora_rank") if config.get("q_lora_rank") else None,
            kv_lora_rank=_count(config, "kv_lora_rank"),
            rope_head_dim=_count(config, "qk_rope_head_dim"),
            nope_head_dim=_count(config, "qk_nope_head_dim"),
            value_head_dim=_count(config, "v_head_dim"),
        )
    else:
        attention = GroupedQueryAttention(
            head_count=head_count,
            kv_head_count=_count(config, "num_key_value_heads") if config.get("num_key_value_heads") else head_count,
            head_dim=_count(config, "head_dim") if config.get("head_dim") else _shared_out(hidden_size, head_count),
        )
    return ArchSpec(
        model_type=model_type,
        layer_count=_layer_count(config),
        hidden_size=hidden_size,
        intermediate_size=_count(config, "intermediate_size"),
        vocab_size=_count(config, "vocab_size"),
        max_context_tokens=_count(config, "max_position_embeddings"),
        # llama's and qwen2's own default is tied; every member of the R1 family says it.
        tied_embeddings=bool(config.get("tie_word_embeddings", model_type != "deepseek_v3")),
        attention=attention,
        experts=_experts(config),
        biased=_biased(config),
        qk_norm=model_type == "qwen3",
        prediction_layer_count=_prediction_layer_count(config),
    )


def prediction_tensors(arch: ArchSpec, index: int) -> tuple[TensorShape, ...]:
    """Return the tensors of layer *index*, behind the last one, that predicts a second token (DeepSeek's MTP).

    It is a layer with experts and a projection of two states to one. Its embedding and head are the model's own,
    by its makers' notes on the weights, and are not listed.
    """
    prefix, hidden = f"model.layers.{index}.", arch.hidden_size
    return (
        TensorShape(prefix + "enorm.weight", (hidden,)),
        TensorShape(prefix + "hnorm.weight", (hidden,)),
        TensorShape(prefix + "eh_proj.weight", (hidden, 2 * hidden), "matrix"),
        *_layer_tensors(arch, index),
        TensorShape(prefix + "shared_head.norm.weight", (hidden,)),
    )


def _biased(config: Mapping[str, Any]) -> frozenset[str]:
    """Return the projections that mlx-lm gives a bias."""
    attention, mlp = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    match config.get("model_type"):
        case "qwen2":
            return _QKV
        case "llama":
            names = _QKV | {"o_proj"} if attention else frozenset()
            return names | _GATED if mlp else names
        case "deepseek_v3" if attention:
            return _LATENT_BIASED
    return frozenset()


def _prediction_layer_count(config: Mapping[str, Any]) -> int:
    return _count_or(config, "num_nextn_predict_layers", 0, least=0) if config["model_type"] == "deepseek_v3" else 0


def _experts(config: Mapping[str, Any]) -> ExpertSpec | None:
    if config.get("model_type") != "deepseek_v3" or not config.get("n_routed_experts"):
        return None
    return ExpertSpec(
        routed_count=_count(config, "n_routed_experts"),
        shared_count=_count_or(config, "n_shared_experts", 0, least=0),
        active_count=_count(config, "num_experts_per_tok"),
        intermediate_size=_count(config, "moe_intermediate_size"),
        first_layer=_count_or(config, "first_k_dense_replace", 0, least=0),
        layer_stride=_count_or(config, "moe_layer_freq", 1, least=1),
        group_count=_count_or(config, "n_group", 1, least=1),
    )


def _count(config: Mapping[str, Any], name: str) -> int:
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{name} is {value!r}, not a positive whole number")
    return value


def _shared_out(hidden_size: int, head_count: int) -> int:
    if head_count > hidden_size:
        raise ValueError(f"num_attention_heads is {head_count}, and hidden_size {hidden_size} leaves them nothing")
    return hidden_size // head_count


def _layer_count(config: Mapping[str, Any]) -> int:
    """Return the layers; a number that no model has would keep the tensor list busy for ever."""
    count = _count(config, "num_hidden_layers")
    if count > _MAX_LAYERS:
        raise ValueError(f"num_hidden_layers is {count}, and no model has more than {_MAX_LAYERS}")
    return count


def _count_or(config: Mapping[str, Any], name: str, default: int, *, least: int) -> int:
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}, not a whole number from {least} on")
    return value


def _top_tensors(arch: ArchSpec) -> Iterator[TensorShape]:
    embedding = (arch.vocab_size, arch.hidden_size)
    embedding_share = 1.0 if arch.tied_embeddings else 1 / arch.vocab_size
    yield TensorShape(_EMBEDDING, embedding, "matrix", embedding_share)
    yield TensorShape("model.norm.weight", (arch.hidden_size,))
    if not arch.tied_embeddings:
        yield TensorShape("lm_head.weight", embedding, "matrix")


def _layer_tensors(arch: ArchSpec, index: int) -> Iterator[TensorShape]:
    prefix = f"model.layers.{index}."
    for tensor in (*_attention_tensors(arch, prefix + "self_attn."), *_mlp_tensors(arch, prefix + "mlp.", index)):
        yield tensor
        module = tensor.name.removesuffix(".weight")
        if tensor.role == "matrix" and module.rpartition(".")[2] in arch.biased:
            yield TensorShape(f"{module}.bias", (tensor.shape[-2],))
    yield TensorShape(prefix + "input_layernorm.weight", (arch.hidden_size,))
    yield TensorShape(prefix + "post_attention_layernorm.weight", (arch.hidden_size,))


def _has_experts(arch: ArchSpec, index: int) -> bool:
    experts = arch.experts
    return experts is not None and index >= experts.first_layer and index % experts.layer_stride == 0


def _attention_tensors(arch: ArchSpec, prefix: str) -> Iterator[TensorShape]:
    hidden, attention = arch.hidden_size, arch.attention
    if isinstance(attention, LatentAttention):
        yield from _latent_tensors(hidden, attention, prefix)
        return
    q_rows = attention.head_count * attention.head_dim
    kv_rows = attention.kv_head_count * attention.head_dim
    for name, rows in (("q_proj", q_rows), ("k_proj", kv_rows), ("v_proj", kv_rows)):
        yield TensorShape(f"{prefix}{name}.weight", (rows, hidden), "matrix")
    yield TensorShape(prefix + "o_proj.weight", (hidden, q_rows), "matrix")
    if arch.qk_norm:
        yield TensorShape(prefix + "q_norm.weight", (attention.head_dim,))
        yield TensorShape(prefix + "k_norm.weight", (attention.head_dim,))


def _latent_tensors(hidden: int, attention: LatentAttention, prefix: str) -> Iterator[TensorShape]:
    heads, rank = attention.head_count, attention.kv_lora_rank
    q_rows = heads * (attention.nope_head_dim + attention.rope_head_dim)
    if attention.q_lora_rank is None:
        yield TensorShape(prefix + "q_proj.weight", (q_rows, hidden), "matrix")
    else:
        yield TensorShape(prefix + "q_a_proj.weight", (attention.q_lora_rank, hidden), "matrix")
        yield TensorShape(prefix + "q_a_layernorm.weight", (attention.q_lora_rank,))
        yield TensorShape(prefix + "q_b_proj.weight", (q_rows, attention.q_lora_rank), "matrix")
    yield TensorShape(prefix + "kv_a_proj_with_mqa.weight", (rank + attention.rope_head_dim, hidden), "matrix")
    yield TensorShape(prefix + "kv_a_layernorm.weight", (rank,))
    yield TensorShape(prefix + "embed_q.weight", (heads, rank, attention.nope_head_dim), "matrix")
    yield TensorShape(prefix + "unembed_out.weight", (heads, attention.value_head_dim, rank), "matrix")
    yield TensorShape(prefix + "o_proj.weight", (hidden, heads * attention.value_head_dim), "matrix")


def _mlp_tensors(arch: ArchSpec, prefix: str, index: int) -> Iterator[TensorShape]:
    hidden, experts = arch.hidden_size, arch.experts
    if experts is None or not _has_experts(arch, index):
        yield from _gated_tensors(prefix, hidden, arch.intermediate_size)
        return
    share = experts.active_count / experts.routed_count
    yield from _gated_tensors(prefix + "switch_mlp.", hidden, experts.intermediate_size, experts.routed_count, share)
    yield TensorShape(prefix + "gate.weight", (experts.routed_count, hidden), "router")
    yield TensorShape(prefix + "gate.e_score_correction_bias", (experts.routed_count,), "float32")
    if experts.shared_count:
        yield from _gated_tensors(prefix + "shared_experts.", hidden, experts.intermediate_size * experts.shared_count)


def _gated_tensors(
    prefix: str, hidden: int, inner: int, stack: int | None = None, read_share: float = 1.0
) -> Iterator[TensorShape]:
    head = () if stack is None else (stack,)
    for name, shape in (("gate_proj", (inner, hidden)), ("up_proj", (inner, hidden)), ("down_proj", (hidden, inner))):
        yield TensorShape(f"{prefix}{name}.weight", head + shape, "matrix", read_share)
