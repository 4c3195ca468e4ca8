"""The buffers that MLX allocates for one layer of a prefill step, as data.

Places are dispatches of MLX's CPU backend, counted on MLX 0.32.4 and mlx-lm 0.32.2 from the one that allocates the
layer's first score matrix; a layer takes 200 to 400 of them. Buffers of a few values a token are left out. A row
marked METAL exists there too, where a kernel does what takes several operations on a CPU.
"""

from typing import NamedTuple

from r1mac.catalog.arch import ArchSpec, GroupedQueryAttention, LatentAttention

METAL, CPU = True, False
# Without a kernel for it, dequantising spreads the codes over 32-bit words first.
_CODE_BYTES = 4
_FLOAT32_BYTES = 4


class ValueTypes(NamedTuple):
    """In which types a model computes and caches, beside its shape."""

    value_bytes: int = 2
    kv_bits: int = 16
    quantized_weights: bool = False


class Size(NamedTuple):
    """Bytes for each token of the step, for each token of the context, and for each pair of both."""

    step: float = 0
    context: float = 0
    pair: float = 0

    def of(self, step_tokens: int, context_tokens: int) -> float:
        """Return the bytes of a step that ends at *context_tokens*."""
        return (self.step + self.pair * context_tokens) * step_tokens + self.context * context_tokens


class Buffer(NamedTuple):
    """A buffer that is held on a CPU from the dispatch *born* until the dispatch *dies* has run."""

    size: Size
    born: int
    dies: int
    on_gpu: bool


class _Row(NamedTuple):
    """A buffer of so many times what *name* takes."""

    name: str
    times: float
    born: int
    dies: int
    on_gpu: bool


# What a layer's input and attention hold before the products of the rotary embedding, for each width of the cache.
_GROUPED_BEFORE = {
    16: (
        _Row("float32_hidden", 1, -150, -146, CPU),  # squared for the norm
        _Row("widened_hidden", 1, -152, -131, CPU),
        _Row("hidden", 1, -136, -33, METAL),  # normed
        _Row("key", 1, -112, -63, METAL),
        _Row("query", 1, -89, -34, METAL),
        _Row("key", 0.5, -59, -44, CPU),
        _Row("key", 0.5, -57, -25, CPU),
        _Row("key", 0.5, -55, -43, CPU),
        _Row("key", 0.5, -53, -25, CPU),
        _Row("key", 1, -27, -15, METAL),  # rotated
        _Row("key", 1, -14, 1, METAL),  # the values
    ),
    8: (
        _Row("float32_hidden", 1, -258, -254, CPU),
        _Row("widened_hidden", 1, -260, -239, CPU),
        _Row("hidden", 1, -240, -124, METAL),
        _Row("key", 1, -181, -173, METAL),
        _Row("key", 1, -175, -121, METAL),
        _Row("query", 1, -124, -41, METAL),
        _Row("key_codes", 1, -160, -110, CPU),
        _Row("cached_keys", 1, -113, 1, METAL),
        _Row("value_codes", 1, -100, -51, CPU),
        _Row("cached_values", 1, -54, 10, METAL),
    ),
    4: (
        _Row("float32_hidden", 1, -312, -308, CPU),
        _Row("widened_hidden", 1, -314, -293, CPU),
        _Row("hidden", 1, -294, -157, METAL),
        _Row("key", 1, -244, -240, METAL),
        _Row("key", 1, -226, -157, METAL),
        _Row("query", 1, -158, -41, METAL),
        _Row("key_codes", 1, -206, -136, CPU),
        _Row("cached_keys", 1, -144, 1, METAL),
        _Row("value_codes", 1, -123, -51, CPU),
        _Row("cached_values", 1, -59, 10, METAL),
    ),
}
_LATENT_BEFORE = {
    16: (
        _Row("float32_hidden", 1, -191, -186, CPU),
        _Row("widened_hidden", 1, -193, -172, CPU),
        _Row("hidden", 1, -176, -135, METAL),
        _Row("lora_query", 1, -171, -138, METAL),
        _Row("lora_query", 1, -139, -105, METAL),
        _Row("query", 1, -106, 5, METAL),
        _Row("down", 1, -136, -33, METAL),
        _Row("latent", 1, -34, -13, METAL),
    ),
    8: (
        _Row("float32_hidden", 1, -291, -287, CPU),
        _Row("widened_hidden", 1, -293, -272, CPU),
        _Row("hidden", 1, -278, -248, METAL),
        _Row("lora_query", 1, -249, -179, METAL),
        _Row("lora_query", 1, -181, -146, METAL),
        _Row("query", 1, -148, 5, METAL),
        _Row("down", 1, -261, -186, METAL),
        _Row("rope_codes", 1, -134, -75, CPU),
        _Row("latent_codes", 1, -118, -64, CPU),
        _Row("cached_rope", 1, -80, 1, METAL),
        _Row("cached_latent", 1, -68, 16, METAL),
    ),
    4: (
        _Row("float32_hidden", 1, -341, -336, CPU),
        _Row("widened_hidden", 1, -343, -322, CPU),
        _Row("hidden", 1, -327, -297, METAL),
        _Row("lora_query", 1, -298, -228, METAL),
        _Row("lora_query", 1, -229, -193, METAL),
        _Row("query", 1, -194, 5, METAL),
        _Row("down", 1, -310, -236, METAL),
        _Row("rope_codes", 1, -174, -80, CPU),
        _Row("latent_codes", 1, -154, -65, CPU),
        _Row("cached_rope", 1, -88, 1, METAL),
        _Row("cached_latent", 1, -73, 16, METAL),
    ),
}
# With as many keys as queries nothing is repeated, and the cache is dequantised so much later.
_NO_REPEAT_DELAYS = {"key_codes": 9, "value_codes": 17, "cached_values": 17}
# Dispatches from a layer's input to its scores.
_GROUPED_LEAD = {16: 155, 8: 264, 4: 318}
_LATENT_LEAD = {16: 195, 8: 296, 4: 346}
# The rotary embedding makes four products of half a vector each.
_GROUPED = (
    _Row("query", 0.5, -42, -29, CPU),
    _Row("query", 0.5, -40, -18, CPU),
    _Row("query", 0.5, -38, -27, CPU),
    _Row("query", 0.5, -36, -18, CPU),
    _Row("query", 1, -20, 1, METAL),  # rotated
    _Row("mask", 1, -4, 6, CPU),
    _Row("scores", 1, 0, 10, CPU),
    _Row("value", 1, 9, 14, METAL),  # the heads' outputs
    _Row("value", 1, 13, 18, CPU),  # and in the order of the tokens
)
_LATENT = (
    _Row("rope_query", 0.5, -43, -28, CPU),
    _Row("rope_query", 0.5, -41, -14, CPU),
    _Row("rope_query", 0.5, -39, -25, CPU),
    _Row("rope_query", 0.5, -36, -14, CPU),
    _Row("rope_query", 1, -16, 1, METAL),  # rotated
    _Row("mask", 1, -100, 100, METAL),  # one for all layers
    _Row("broadcast", 1, -5, -3, CPU),
    _Row("expanded_keys", 1, -4, 10, METAL),
    _Row("scores", 1, 0, 14, METAL),  # of the rotary part
    _Row("bare_query", 1, 5, 10, CPU),  # scaled
    _Row("scores", 1, 9, 20, CPU),
    _Row("broadcast", 1, 14, 16, CPU),
    _Row("expanded_values", 1, 15, 20, METAL),
    _Row("value", 1, 19, 24, METAL),
    _Row("value", 1, 22, 27, CPU),
)
# From here on relative to the attention's output.
_GROUPED_OUTPUT, _LATENT_OUTPUT = 17, 26
_DENSE = (
    _Row("hidden", 1, 0, 4, METAL),
    _Row("float32_hidden", 1, 5, 9, CPU),
    _Row("widened_hidden", 1, 5, 21, CPU),
    _Row("widened_hidden", 1, 20, 24, CPU),
    _Row("hidden", 1, 19, 30, METAL),
    _Row("inner", 1, 27, 34, METAL),
    _Row("inner", 1, 29, 38, METAL),
)
_DENSE_END = 41
_BEFORE_EXPERTS = (
    _Row("hidden", 1, 0, 4, METAL),
    _Row("float32_hidden", 1, 5, 9, CPU),
    _Row("widened_hidden", 1, 5, 21, CPU),
    _Row("widened_hidden", 1, 20, 24, CPU),
    _Row("hidden", 1, 19, 83, METAL),
)
_EXPERTS = (
    _Row("routed_hidden", 1, 47, 59, METAL),  # sorted by expert
    _Row("routed_inner", 1, 56, 65, METAL),
    _Row("routed_inner", 1, 58, 70, METAL),
    _Row("routed_hidden", 1, 70, 79, METAL),
    _Row("routed_hidden", 1, 78, 102, METAL),  # in the order of the tokens
    _Row("shared_inner", 1, 80, 92, METAL),
    _Row("shared_inner", 1, 82, 100, METAL),
    _Row("hidden", 1, 98, 106, METAL),
)
_EXPERTS_END = 101
# Choosing the groups first takes so many dispatches more.
_GROUPING = 19


def layer_buffers(arch: ArchSpec, types: ValueTypes, *, has_experts: bool) -> list[Buffer]:
    """Return the buffers of one layer, its input among them."""
    latent = isinstance(arch.attention, LatentAttention)
    before = (_LATENT_BEFORE if latent else _GROUPED_BEFORE)[types.kv_bits]
    output = _LATENT_OUTPUT if latent else _GROUPED_OUTPUT
    lead, end = layer_span(arch, types, has_experts=has_experts)
    sizes = _sizes(arch, types)
    rows = (
        (_Row("hidden", 1, -lead, end + 5, METAL), 0),
        *((row, _delay(arch, row)) for row in before),
        *((row, 0) for row in (_LATENT if latent else _GROUPED)),
        *((row, output) for row in (_BEFORE_EXPERTS if has_experts else _DENSE)),
        *((row, output + _grouping(arch)) for row in (_EXPERTS if has_experts else ())),
    )
    return [
        Buffer(Size(*(row.times * part for part in sizes[row.name])), row.born + later, row.dies + later, row.on_gpu)
        for row, later in rows
    ]


def layer_span(arch: ArchSpec, types: ValueTypes, *, has_experts: bool) -> tuple[int, int]:
    """Return the dispatches from a layer's input to its scores, and from there to its output."""
    end = _EXPERTS_END + _grouping(arch) if has_experts else _DENSE_END
    if isinstance(arch.attention, LatentAttention):
        return _LATENT_LEAD[types.kv_bits], _LATENT_OUTPUT + end
    return _GROUPED_LEAD[types.kv_bits], _GROUPED_OUTPUT + end


def _delay(arch: ArchSpec, row: _Row) -> int:
    """Return by how much later a buffer comes where every query head has keys of its own."""
    attention = arch.attention
    alone = isinstance(attention, GroupedQueryAttention) and attention.head_count == attention.kv_head_count
    return _NO_REPEAT_DELAYS.get(row.name, 0) if alone else 0


def _grouping(arch: ArchSpec) -> int:
    """Return the dispatches that choosing groups of experts takes."""
    return _GROUPING if arch.experts is not None and arch.experts.group_count > 1 else 0


def _sizes(arch: ArchSpec, types: ValueTypes) -> dict[str, Size]:
    """Return what each kind of buffer takes."""
    value, hidden = types.value_bytes, arch.hidden_size
    sizes = {
        "hidden": Size(step=value * hidden),
        # A norm computes in float32.
        "float32_hidden": Size(step=_FLOAT32_BYTES * hidden),
        "widened_hidden": Size(step=_FLOAT32_BYTES * hidden if value < _FLOAT32_BYTES else 0),
        "inner": Size(step=value * arch.intermediate_size),
        "mask": Size(pair=1),
        "scores": Size(pair=value * arch.attention.head_count),
    }
    match arch.attention:
        case GroupedQueryAttention(head_count=heads, kv_head_count=kv_heads, head_dim=length):
            sizes |= {
                "query": Size(step=value * heads * length),
                "value": Size(step=value * heads * length),
                "key": Size(step=value * kv_heads * length),
                "cached_keys": Size(context=value * kv_heads * length),
                "cached_values": Size(context=value * kv_heads * length),
                "key_codes": Size(context=_CODE_BYTES * kv_heads * length),
                "value_codes": Size(context=_CODE_BYTES * kv_heads * length),
            }
        case LatentAttention() as latent:
            sizes |= _latent_sizes(latent, types)
    if arch.experts is not None:
        experts = arch.experts
        sizes |= {
            "routed_hidden": Size(step=value * experts.active_count * hidden),
            "routed_inner": Size(step=value * experts.active_count * experts.intermediate_size),
            "shared_inner": Size(step=value * experts.shared_count * experts.intermediate_size),
        }
    return sizes


def _latent_sizes(latent: LatentAttention, types: ValueTypes) -> dict[str, Size]:
    value, heads, rank, rope = types.value_bytes, latent.head_count, latent.kv_lora_rank, latent.rope_head_dim
    return {
        "lora_query": Size(step=value * (latent.q_lora_rank or 0)),
        "query": Size(step=value * heads * (latent.nope_head_dim + rope)),
        "bare_query": Size(step=value * heads * latent.nope_head_dim),
        "rope_query": Size(step=value * heads * rope),
        "value": Size(step=value * heads * latent.value_head_dim),
        "down": Size(step=value * (rank + rope)),
        "latent": Size(step=value * rank),
        "expanded_keys": Size(context=value * heads * latent.nope_head_dim),
        "expanded_values": Size(context=value * heads * latent.value_head_dim),
        "cached_latent": Size(context=value * rank),
        "cached_rope": Size(context=value * rope),
        "latent_codes": Size(context=_CODE_BYTES * rank),
        "rope_codes": Size(context=_CODE_BYTES * rope),
        # MLX's CPU backend copies the latent for every head where the weights are quantised.
        "broadcast": Size(context=value * heads * rank if types.quantized_weights else 0),
    }
