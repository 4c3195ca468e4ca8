"""The buffers that MLX allocates for one layer of a prefill step, as data.

Places are dispatches of MLX's CPU backend, counted on MLX 0.32.4 and mlx-lm 0.32.2 from the one that allocates the
layer's first score matrix; a layer takes 200 to 400 of them. Buffers of a few values a token are left out. A row
marked METAL exists there too, where a kernel does what takes several operations on a CPU.

Latent attention is r1mac's own (engine/latent_attention.py), which stops until a block of it is computed: nothing that
comes behind a stop is queued before it.
"""

from typing import NamedTuple

from r1mac.catalog.arch import ArchSpec, GroupedQueryAttention, LatentAttention
from r1mac.plan.latent_blocks import LEAST_KEYS, VALUES_AT_ONCE, expanded_length, longest_absorbed_step

METAL, CPU = True, False
# Without a kernel for it, dequantising spreads the codes over 32-bit words first.
_CODE_BYTES = 4
_FLOAT32_BYTES = 4
# The most that a narrow cache keeps wide: a block (plan.memory.narrow_tokens).
_MOST_WIDE_TOKENS = 256


class ValueTypes(NamedTuple):
    """In which types a model computes and caches, beside its shape."""

    value_bytes: int = 2
    kv_bits: int = 16
    quantized_weights: bool = False


class Extent(NamedTuple):
    """How much there is of what buffers grow with."""

    step: float
    context: float
    pair: float
    block_keys: float
    block_queries: float
    block_pairs: float
    recent: float


class Size(NamedTuple):
    """Bytes for each token of the step, for each token of the context, and for each pair of both.

    The next three are of a block of latent attention: for each head and key, head and token of the step, and head, key
    and token. The last one is for each token of the step and of the newest before it, which a narrow cache keeps wide.
    """

    step: float = 0
    context: float = 0
    pair: float = 0
    block_keys: float = 0
    block_queries: float = 0
    block_pairs: float = 0
    recent: float = 0

    def of(self, extent: Extent) -> float:
        """Return the bytes at an extent."""
        return sum(size * count for size, count in zip(self, extent, strict=True))


class Cut(NamedTuple):
    """How a step is cut where attention is latent: in the latent's space or not, and in several blocks or one."""

    absorbed: bool = False
    in_blocks: bool = False


_NO_CUT = Cut()


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
        _Row("float32_hidden", 1, -318, -314, CPU),
        _Row("widened_hidden", 1, -320, -299, CPU),
        _Row("hidden", 1, -300, -122, METAL),
        _Row("key", 1, -281, -256, METAL),
        _Row("key", 1, -248, -238, METAL),  # rotated
        _Row("key", 1, -245, -226, METAL),  # the values
        _Row("recent_key", 1, -243, -37, METAL),  # with the newest before the step
        _Row("recent_key", 1, -231, -2, METAL),
        _Row("recent_key", 1, -216, -198, CPU),  # what becomes codes, in float32
        _Row("recent_key", 1, -195, -152, CPU),
        _Row("query", 1, -123, -43, METAL),
        _Row("key_codes", 1, -178, -127, CPU),
        _Row("cached_keys", 1, -131, 1, METAL),
        _Row("value_codes", 1, -116, -67, CPU),
        _Row("cached_values", 1, -71, 10, METAL),
    ),
    4: (
        _Row("float32_hidden", 1, -381, -377, CPU),
        _Row("widened_hidden", 1, -383, -362, CPU),
        _Row("hidden", 1, -363, -148, METAL),
        _Row("key", 1, -344, -317, METAL),
        _Row("key", 1, -313, -301, METAL),
        _Row("key", 1, -308, -289, METAL),
        _Row("recent_key", 1, -306, -37, METAL),
        _Row("recent_key", 1, -294, -3, METAL),
        _Row("recent_key", 1, -235, -187, CPU),
        _Row("query", 1, -149, -44, METAL),
        _Row("key_codes", 0.375, -274, -154, CPU),
        _Row("key_codes", 0.625, -217, -154, CPU),
        _Row("cached_keys", 1, -161, 1, METAL),
        _Row("value_codes", 1, -137, -67, CPU),
        _Row("cached_values", 1, -75, 10, METAL),
    ),
}
_LATENT_BEFORE = {
    16: (
        _Row("float32_hidden", 1, -204, -200, CPU),
        _Row("widened_hidden", 1, -206, -186, CPU),
        _Row("lora_query", 1, -184, -148, METAL),
        _Row("lora_query", 1, -181, -176, CPU),
        _Row("lora_query", 1, -149, -113, METAL),
        _Row("down", 1, -162, -63, METAL),
        _Row("latent", 1, -133, -120, CPU),
        _Row("latent", 1, -63, -33, METAL),
        _Row("hidden", 1, -190, 28, METAL),  # normed: the module has it until it returns
        _Row("query", 1, -114, -9, METAL),
    ),
    8: (
        _Row("float32_hidden", 1, -365, -362, CPU),
        _Row("widened_hidden", 1, -367, -347, CPU),
        _Row("lora_query", 1, -263, -200, METAL),
        _Row("lora_query", 1, -253, -242, CPU),
        _Row("lora_query", 1, -201, -137, METAL),
        _Row("down", 1, -341, -282, METAL),
        _Row("latent", 1, -324, -318, CPU),
        _Row("latent", 1, -283, -271, METAL),
        _Row("recent_latent", 1, -276, -34, METAL),  # with the newest before the step
        _Row("latent", 1, -223, -205, CPU),
        _Row("hidden", 1, -352, 28, METAL),
        _Row("query", 1, -138, -9, METAL),
        _Row("latent_codes", 1, -176, -107, CPU),
        _Row("rope_codes", 1, -157, -96, CPU),
        _Row("cached_latent", 1, -111, 28, METAL),
        _Row("cached_rope", 1, -100, 28, METAL),
    ),
    4: (
        _Row("float32_hidden", 1, -431, -426, CPU),
        _Row("widened_hidden", 1, -433, -413, CPU),
        _Row("lora_query", 1, -276, -235, METAL),
        _Row("lora_query", 1, -272, -264, CPU),
        _Row("lora_query", 1, -236, -159, METAL),
        _Row("down", 1, -411, -293, METAL),
        _Row("latent", 1, -393, -381, METAL),
        _Row("recent_latent", 1, -386, -34, METAL),
        _Row("latent", 1, -370, -364, CPU),
        _Row("hidden", 1, -417, 28, METAL),
        _Row("query", 1, -160, -9, METAL),
        _Row("latent_codes", 0.25, -356, -111, CPU),
        _Row("latent_codes", 0.75, -207, -111, CPU),
        _Row("rope_codes", 1, -186, -96, CPU),
        _Row("cached_latent", 1, -119, 28, METAL),
        _Row("cached_rope", 1, -104, 28, METAL),
    ),
}
# With as many keys as queries nothing is repeated, and the cache is dequantised so much later.
_NO_REPEAT_DELAYS = {"key_codes": 9, "value_codes": 17, "cached_values": 17}
# Queries that are absorbed come before the cache in MLX's order.
_ABSORBED_DELAYS = {"latent_codes": 33, "rope_codes": 17}
# Dispatches from a layer's input to its scores.
_GROUPED_LEAD = {16: 155, 8: 324, 4: 386}
_LATENT_LEAD = {16: 205, 8: 369, 4: 435}
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
_LATENT_ROTATION = (
    _Row("rope_query", 0.5, -52, -39, CPU),
    _Row("rope_query", 0.5, -50, -24, CPU),
    _Row("rope_query", 0.5, -48, -36, CPU),
    _Row("rope_query", 0.5, -44, -24, CPU),
    _Row("rope_query", 1, -26, -9, METAL),  # rotated
    _Row("query", 1, -11, 28, METAL),  # both parts, scaled
)
# A block of it: keys and values expanded, or queries taken into the latent's space.
_EXPANDED = (
    _Row("expanded_keys", 1, -21, -13, METAL),
    _Row("keys", 1, -14, 1, METAL),
    _Row("mask", 1, -3, 5, METAL),
    _Row("narrow_scores", 1, 0, 9, METAL),
    _Row("scores", 1, 0, 9, METAL),
    _Row("scores", 1, 8, 21, METAL),
    _Row("narrow_scores", 1, 8, 21, METAL),
    _Row("expanded_values", 1, 17, 21, METAL),
    _Row("mixed", 1, 20, 26, METAL),
    _Row("value", 1, 25, 31, METAL),
)
_ABSORBED = (
    _Row("bare_query", 1, -17, -15, METAL),
    _Row("inner_query", 1, -17, -7, METAL),
    _Row("shared_keys", 1, -13, 2, METAL),
    _Row("inner_rope_query", 1, -10, 2, METAL),
    _Row("mask", 1, 3, 8, METAL),
    _Row("narrow_scores", 1, 0, 14, METAL),
    _Row("scores", 1, 0, 14, METAL),
    _Row("scores", 1, 13, 20, METAL),
    _Row("narrow_scores", 1, 13, 20, METAL),
    _Row("inner_mixed", 1, 19, 28, METAL),
    _Row("value", 1, 27, 32, METAL),
    _Row("value", 1, 29, 36, METAL),
)
# Where there are several blocks: what was seen before, and what other heads gave.
_OTHER_BLOCKS = {
    False: (_Row("mixed", 1, -20, 28, METAL), _Row("value", 1, -20, 28, METAL)),
    True: (_Row("inner_mixed", 1, -20, 28, METAL), _Row("value", 1, -20, 28, METAL)),
}
# The attention stops here, until it is computed.
_LATENT_STOP = {False: 27, True: 31}
# From here on relative to the attention's output.
_GROUPED_OUTPUT = 17
_LATENT_OUTPUT = {False: 30, True: 35}
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


def layer_buffers(arch: ArchSpec, types: ValueTypes, *, has_experts: bool, cut: Cut = _NO_CUT) -> list[Buffer]:
    """Return the buffers of one layer, its input among them."""
    lead, end = layer_span(arch, types, has_experts=has_experts, cut=cut)
    sizes = _sizes(arch, types)
    attention, output = _attention_rows(arch, types, cut)
    rows = (
        (_Row("hidden", 1, -lead, end + 5, METAL), 0),
        *((row, _delay(arch, row, cut)) for row in attention),
        *((row, output) for row in (_BEFORE_EXPERTS if has_experts else _DENSE)),
        *((row, output + _grouping(arch)) for row in (_EXPERTS if has_experts else ())),
    )
    return [
        Buffer(Size(*(row.times * part for part in sizes[row.name])), row.born + later, row.dies + later, row.on_gpu)
        for row, later in rows
    ]


def layer_span(arch: ArchSpec, types: ValueTypes, *, has_experts: bool, cut: Cut = _NO_CUT) -> tuple[int, int]:
    """Return the dispatches from a layer's input to its scores, and from there to its output."""
    end = _EXPERTS_END + _grouping(arch) if has_experts else _DENSE_END
    if isinstance(arch.attention, LatentAttention):
        return _LATENT_LEAD[types.kv_bits], _LATENT_OUTPUT[cut.absorbed] + end
    return _GROUPED_LEAD[types.kv_bits], _GROUPED_OUTPUT + end


def layer_stop(arch: ArchSpec, cut: Cut) -> int | None:
    """Return the dispatch up to which a layer is computed before more of it is queued; None if it does not stop."""
    return _LATENT_STOP[cut.absorbed] if isinstance(arch.attention, LatentAttention) else None


def step_extents(arch: ArchSpec, step_tokens: float, context_tokens: int) -> list[tuple[Extent, Cut]]:
    """Return what steps that end at *context_tokens* multiply their buffers by, and how they are cut.

    One is as long as *step_tokens*. Where that is expanded, another is the longest that is absorbed: it may hold more.
    """
    recent = _recent_tokens(step_tokens, context_tokens)
    whole = Extent(step_tokens, context_tokens, step_tokens * context_tokens, 0, 0, 0, recent)
    if not isinstance(arch.attention, LatentAttention):
        return [(whole, _NO_CUT)]
    longest = longest_absorbed_step(arch.attention)
    found = [_latent_extent(arch.attention, min(step_tokens, longest), context_tokens, absorbed=True)]
    if step_tokens > longest:
        found.append(_latent_extent(arch.attention, step_tokens, context_tokens, absorbed=False))
    return found


def _latent_extent(
    shape: LatentAttention, step_tokens: float, context_tokens: int, *, absorbed: bool
) -> tuple[Extent, Cut]:
    """Return an extent with blocks as ``latent_blocks`` makes them, but for what it rounds."""
    values = step_tokens + (0 if absorbed else expanded_length(shape))
    heads = min(shape.head_count, VALUES_AT_ONCE / (LEAST_KEYS * values))
    keys = min(shape.head_count * context_tokens, VALUES_AT_ONCE / values)
    pairs = step_tokens * context_tokens
    recent = _recent_tokens(step_tokens, context_tokens)
    extent = Extent(step_tokens, context_tokens, pairs, keys, heads * step_tokens, keys * step_tokens, recent)
    return extent, Cut(absorbed, keys < shape.head_count * context_tokens)


def _recent_tokens(step_tokens: float, context_tokens: int) -> float:
    return min(step_tokens + _MOST_WIDE_TOKENS, context_tokens)


def _attention_rows(arch: ArchSpec, types: ValueTypes, cut: Cut) -> tuple[tuple[_Row, ...], int]:
    """Return the rows of a layer up to its attention's output, and where that is."""
    if not isinstance(arch.attention, LatentAttention):
        return (*_GROUPED_BEFORE[types.kv_bits], *_GROUPED), _GROUPED_OUTPUT
    block = (*(_ABSORBED if cut.absorbed else _EXPANDED), *(_OTHER_BLOCKS[cut.absorbed] if cut.in_blocks else ()))
    return (*_LATENT_BEFORE[types.kv_bits], *_LATENT_ROTATION, *block), _LATENT_OUTPUT[cut.absorbed]


def _delay(arch: ArchSpec, row: _Row, cut: Cut) -> int:
    """Return by how much later a buffer comes: where every query head has keys of its own, or in the latent's space."""
    attention = arch.attention
    if isinstance(attention, LatentAttention):
        return _ABSORBED_DELAYS.get(row.name, 0) if cut.absorbed else 0
    return _NO_REPEAT_DELAYS.get(row.name, 0) if attention.head_count == attention.kv_head_count else 0


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
    }
    match arch.attention:
        case GroupedQueryAttention(head_count=heads, kv_head_count=kv_heads, head_dim=length):
            sizes |= {
                "mask": Size(pair=1),
                "scores": Size(pair=value * heads),
                "query": Size(step=value * heads * length),
                "value": Size(step=value * heads * length),
                "key": Size(step=value * kv_heads * length),
                "cached_keys": Size(context=value * kv_heads * length),
                "cached_values": Size(context=value * kv_heads * length),
                "recent_key": Size(recent=value * kv_heads * length),
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
    # Scores and what is taken from the values are float32; where products are not, they are held in their type too.
    narrow = value if value < _FLOAT32_BYTES else 0
    return {
        "lora_query": Size(step=value * (latent.q_lora_rank or 0)),
        "query": Size(step=value * heads * (latent.nope_head_dim + rope)),
        "bare_query": Size(step=value * heads * latent.nope_head_dim),
        "rope_query": Size(step=value * heads * rope),
        "value": Size(step=value * heads * latent.value_head_dim),
        "down": Size(step=value * (rank + rope)),
        "latent": Size(step=value * rank),
        "cached_latent": Size(context=value * rank),
        "cached_rope": Size(context=value * rope),
        "recent_latent": Size(recent=value * rank),
        "latent_codes": Size(context=_CODE_BYTES * rank),
        "rope_codes": Size(context=_CODE_BYTES * rope),
        "mask": Size(block_pairs=1 / heads),
        "scores": Size(block_pairs=_FLOAT32_BYTES),
        "narrow_scores": Size(block_pairs=narrow),
        "expanded_keys": Size(block_keys=value * latent.nope_head_dim),
        "keys": Size(block_keys=value * (latent.nope_head_dim + rope)),
        "expanded_values": Size(block_keys=value * latent.value_head_dim),
        "mixed": Size(block_queries=(_FLOAT32_BYTES + narrow) * latent.value_head_dim),
        "shared_keys": Size(block_keys=value * (rank + rope) / heads),
        "inner_query": Size(block_queries=value * rank),
        "inner_rope_query": Size(block_queries=value * (rank + rope)),
        "inner_mixed": Size(block_queries=(_FLOAT32_BYTES + narrow) * rank),
    }
