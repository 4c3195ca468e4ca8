"""Memory formulas beside published sizes and sums done by hand."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.catalog.arch import ArchSpec, parse_arch
from r1mac.catalog.models import all_models, find
from r1mac.plan.memory import (
    Quantization,
    kv_bytes_per_token,
    kv_cache_bytes,
    kv_group_size,
    narrow_tokens,
    prefill_scratch_bytes,
    prompt_scratch_bytes,
    tensor_bytes,
    weight_bytes,
)
from r1mac.units import GB
from tests.checkpoints import CONFIGS

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "mlx_sizes.json").read_text(encoding="utf-8"))
ARCHS = {model.key: model.arch for model in all_models()}
WIDTHS = {
    "2bit": Quantization(bits=2),
    "3bit": Quantization(bits=3),
    "4bit": Quantization(bits=4),
    "4bit-g32": Quantization(bits=4, group_size=32),
    "6bit": Quantization(bits=6),
    "8bit": Quantization(bits=8),
    "bf16": Quantization(bits=16),
}


def arch_of(name: str) -> ArchSpec:
    """Return the shape of a model of the catalog."""
    model = find(name)
    assert model is not None
    return model.arch


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("key", VECTORS)
def test_stored_bytes_are_those_of_mlx_lm(key, width):
    """A plain conversion weighs, at every width, what the recorded MLX modules weigh.

    The vectors counted the routers' float32 correction bias at 2 bytes a value; it is stored at 4, so that
    deepseek_v3 weighs 58 layers x 256 experts x 2 bytes = 29,696 more.
    """
    arch = ARCHS[key]
    bias_bytes = 29_696 if arch.model_type == "deepseek_v3" else 0

    assert weight_bytes(arch, WIDTHS[width]) == VECTORS[key][width] + bias_bytes


@pytest.mark.parametrize("key", VECTORS)
def test_kv_bytes_are_those_of_the_vectors(key):
    """What a token adds to the cache is the recorded number for every model of the family."""
    assert kv_bytes_per_token(ARCHS[key]) == VECTORS[key]["kv"]


@pytest.mark.parametrize(
    ("name", "count_bytes"),
    [
        ("70b", 327_680),  # 80 layers x 2 x 8 heads x 128 x 2 bytes
        ("671b", 70_272),  # 61 layers x (512 + 64) x 2 bytes: MLA caches a latent
        ("32b", 262_144),  # 64 x 2 x 8 x 128 x 2
        ("1.5b", 28_672),  # 28 x 2 x 2 x 128 x 2
        ("demo", 23_040),  # 30 x 2 x 3 x 64 x 2
    ],
)
def test_a_token_costs_what_the_shapes_say(name, count_bytes):
    """The cache of a token is layers x cached values x bytes of a value."""
    arch = arch_of(name)

    assert kv_bytes_per_token(arch) == count_bytes
    assert kv_bytes_per_token(arch, value_bytes=4) == 2 * count_bytes


@pytest.mark.parametrize(
    ("tokens", "blocks"), [(1, 1), (255, 1), (256, 1), (257, 2), (4096, 16), (4097, 17), (131_072, 512)]
)
def test_the_cache_grows_in_blocks_of_256_tokens(tokens, blocks):
    """The cache takes whole blocks, as mlx-lm allocates them."""
    assert kv_cache_bytes(arch_of("70b"), tokens) == blocks * 256 * 327_680


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        (Quantization(bits=4), 4.5),  # 4 + (16 + 16) / 64
        (Quantization(bits=4, group_size=32), 5.0),
        (Quantization(bits=3), 3.5),
        (Quantization(bits=8, group_size=128), 8.25),
        (Quantization(bits=16), 16.0),
    ],
)
def test_bits_per_weight_count_scales_and_biases(quantization, bits):
    """A group shares a 16-bit scale and a 16-bit bias."""
    assert quantization.bits_per_weight == bits


@pytest.mark.parametrize(
    ("quantization", "count_bytes"),
    [
        (None, 131_072),  # 256 x 256 x 2
        (Quantization(bits=16), 131_072),
        (Quantization(bits=4), 36_864),  # 32,768 of codes + 1,024 groups x 4
        (Quantization(bits=3), 28_672),  # 24,576 + 4,096
        (Quantization(bits=6, group_size=32), 57_344),  # 49,152 + 2,048 x 4
        (Quantization(bits=2, group_size=128), 18_432),  # 16,384 + 512 x 4
    ],
)
def test_bytes_of_one_matrix(quantization, count_bytes):
    """A matrix of 256 x 256 takes its codes, and 4 bytes for each group."""
    assert tensor_bytes((256, 256), quantization) == count_bytes


@pytest.mark.parametrize("quantization", [Quantization(bits=3), Quantization(bits=4, group_size=32)], ids=str)
@pytest.mark.parametrize("shape", [(64, 128), (5, 192), (3, 7, 64)], ids=str)
def test_bytes_of_a_matrix_are_those_that_mlx_makes(shape, quantization):
    """The formula for one matrix equals the arrays that ``mx.quantize`` returns."""
    import mlx.core as mx

    parts = mx.quantize(mx.zeros(shape, dtype=mx.bfloat16), group_size=quantization.group_size, bits=quantization.bits)

    assert tensor_bytes(shape, quantization) == sum(part.nbytes for part in parts)


def test_a_matrix_that_the_group_size_does_not_divide_stays_wide():
    """Rows of 576 values are 9 groups of 64 and 4.5 of 128: with groups of 128 the demo model stays at 16 bits."""
    arch = arch_of("demo")
    narrow = [
        tensor for tensor in arch.tensors if tensor.role == "matrix" and tensor.shape[-1] % 128 == 0
    ]  # the down projections, of 1536 columns
    saved = sum(2 * tensor.size - tensor_bytes(tensor.shape, Quantization(bits=4, group_size=128)) for tensor in narrow)

    assert len(narrow) == 30
    assert weight_bytes(arch, Quantization(bits=4, group_size=128)) == 2 * arch.parameter_count - saved


@pytest.mark.parametrize(
    ("name", "value_bytes", "kv_bits", "count_bytes"),
    [
        ("70b", 2, 8, 184_320),  # 80 layers x 2 x 8 heads x (128 codes + 2 groups x 2 x 2 bytes)
        ("70b", 2, 4, 102_400),  # 80 x 2 x 8 x (64 + 4 x 4): groups of 32 at 4 bits
        ("671b", 2, 8, 39_528),  # 61 x (512 + 16 x 4 + 64 + 2 x 4)
        ("671b", 2, 4, 21_960),  # 61 x (256 + 16 x 4 + 32 + 2 x 4)
        ("demo", 4, 8, 14_400),  # 30 x 2 x 3 x (64 + 2 x 8): on a CPU the scales are float32
    ],
)
def test_a_quantised_cache_is_priced_with_its_scales(name, value_bytes, kv_bits, count_bytes):
    """Codes, and a scale and a bias in the model's type for each group; MLA's latent and rotary key by themselves."""
    assert kv_bytes_per_token(arch_of(name), value_bytes=value_bytes, kv_bits=kv_bits) == count_bytes


@pytest.mark.parametrize("kv_bits", [8, 4])
@pytest.mark.parametrize("length", [32, 64, 96, 128, 512])
def test_a_cached_vector_takes_what_mlx_makes_of_it(length, kv_bits):
    """The price of one vector equals the arrays that ``mx.quantize`` returns."""
    import mlx.core as mx

    arch = parse_arch(CONFIGS["llama"] | {"head_dim": length, "num_key_value_heads": 1, "num_hidden_layers": 1})
    parts = mx.quantize(mx.zeros((1, length)), group_size=kv_group_size(length, kv_bits), bits=kv_bits)

    assert kv_bytes_per_token(arch, value_bytes=4, kv_bits=kv_bits) == 2 * sum(part.nbytes for part in parts)


def test_a_vector_of_no_whole_groups_stays_wide():
    """Heads of 80 values are no groups of 32: they cost at 4 bits what they cost at 16."""
    arch = parse_arch(CONFIGS["llama"] | {"head_dim": 80})

    assert kv_bytes_per_token(arch, kv_bits=4) == kv_bytes_per_token(arch)
    scratch = [
        prefill_scratch_bytes(arch, step_tokens=64, context_tokens=512, fused_attention=fused, kv_bits=kv_bits)
        for fused in (True, False)
        for kv_bits in (16, 4)
    ]
    assert scratch[0] == scratch[1]
    assert scratch[2] == scratch[3]


@pytest.mark.parametrize(("context", "peak", "share"), [(4096, 383.213e9, 0.4), (16384, 398.605e9, 0.15)])
def test_latent_attention_holds_far_less_than_mlx_lms(context, peak, share):
    """Cache and scratch of the 671B at step 2048, beside what mlx-lm's own attention took (PR 839): 5.6 and 21.0 GB."""
    arch = arch_of("671b")
    scratch = prefill_scratch_bytes(arch, step_tokens=2048, context_tokens=context, fused_attention=True)

    assert kv_cache_bytes(arch, context) + scratch < share * (peak - 377.607e9)


def test_latent_attention_needs_no_more_for_a_longer_context():
    """Blocks bound the scores: ten times the context costs nothing, or the dequantised cache of one layer."""
    sizes = {"step_tokens": 2048, "fused_attention": True}
    arch = arch_of("671b")

    at_16 = [prefill_scratch_bytes(arch, context_tokens=context, **sizes) for context in (16_384, 163_840)]
    at_8 = [prefill_scratch_bytes(arch, context_tokens=context, kv_bits=8, **sizes) for context in (16_384, 163_840)]

    assert at_16[1] - at_16[0] < 0.01 * at_16[0]
    assert at_8[1] - at_8[0] == pytest.approx((163_840 - 16_384) * (512 + 64) * 2, rel=0.05)


@pytest.mark.parametrize(
    ("bits", "group_size", "peak"),
    [(16, 64, 9.02), (8, 64, 5.254), (6, 64, 4.25), (5, 32, 4.00), (5, 64, 3.86), (4, 32, 3.603), (4, 64, 3.35)],
)
def test_the_published_peaks_of_a_small_dense_model_are_reproduced(bits, group_size, peak):
    """Qwen3-4B on an M4 Max, 2048 tokens read and 128 written (mlx-lm's BENCHMARKS.md, in GB): within 4 %.

    Small models are where several layers are in flight on a GPU: 0.7 GB of these peaks.
    """
    shape = {"num_hidden_layers": 36, "hidden_size": 2560, "intermediate_size": 9728, "vocab_size": 151_936}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
    arch = parse_arch({"model_type": "qwen3", "max_position_embeddings": 262_144, **shape, **heads})
    scratch = prefill_scratch_bytes(arch, step_tokens=2048, context_tokens=2048, fused_attention=True)

    total = weight_bytes(arch, Quantization(bits=bits, group_size=group_size)) + kv_cache_bytes(arch, 2176) + scratch

    assert total == pytest.approx(peak * GB, rel=0.04)


def test_scratch_with_fused_attention_does_not_grow_with_the_context():
    """Metal's kernels keep no scores of ordinary heads: only a quantised cache costs more at a longer context."""
    sizes = {"step_tokens": 512, "fused_attention": True}
    arch = arch_of("70b")

    at_16 = [prefill_scratch_bytes(arch, context_tokens=context, **sizes) for context in (4096, 16_384)]
    at_8 = [prefill_scratch_bytes(arch, context_tokens=context, kv_bits=8, **sizes) for context in (4096, 16_384)]

    assert at_16[0] == at_16[1]
    # Keys and values of a layer, dequantised, of the layer at work and of the next one: 2 x 2 x 8 heads x 128 x 2.
    assert at_8[1] - at_8[0] == pytest.approx(8192 * 12_288)


def test_a_growing_cache_is_copied_where_little_else_is_held():
    """At 128 Ki tokens the copy of one layer's keys, 8 heads x 128 x 2 bytes, is more than short steps hold."""
    scratch = prefill_scratch_bytes(arch_of("70b"), step_tokens=64, context_tokens=131_072, fused_attention=True)

    assert scratch == (131_072 - 256) * 2048


def test_scratch_without_fused_attention_has_a_score_matrix():
    """On a CPU the scores of a step, heads x step x context, are in memory, in float32 like all else, and a mask."""
    sizes = {"step_tokens": 512, "fused_attention": False, "value_bytes": 4}

    short, long = (prefill_scratch_bytes(arch_of("70b"), context_tokens=tokens, **sizes) for tokens in (4096, 8192))

    assert long - short == 512 * 4096 * (4 * 64 + 1)


@pytest.mark.parametrize("fused", [True, False])
def test_quantised_weights_change_little_of_what_is_held(fused):
    """A block's matrices are dequantised for its heads: nothing is copied for each of them."""
    sizes = {"step_tokens": 512, "context_tokens": 4096, "value_bytes": 4, "fused_attention": fused}
    arch = arch_of("671b")

    wide, narrow = (prefill_scratch_bytes(arch, quantized_weights=quantized, **sizes) for quantized in (False, True))

    assert narrow == pytest.approx(wide, rel=0.05)


def test_a_step_is_not_longer_than_the_context():
    """A prompt of 100 tokens is read in one step of 100."""
    sizes = {"context_tokens": 100, "fused_attention": True}

    long = prefill_scratch_bytes(arch_of("70b"), step_tokens=2048, **sizes)

    assert long == prefill_scratch_bytes(arch_of("70b"), step_tokens=100, **sizes)


@pytest.mark.parametrize(
    ("prompt", "step", "end"), [(1024, 512, 1024), (1000, 488, 1000), (2047, 511, 2047), (1090, 512, 1024)]
)
@pytest.mark.parametrize("fused", [True, False])
def test_a_prompt_holds_what_its_largest_step_holds(prompt, step, end, fused):
    """Read from its beginning, a prompt ends with a shorter step; the plan allows for a full one there."""
    arch = arch_of("70b")
    types = {"fused_attention": fused, "kv_bits": 8}

    found = prompt_scratch_bytes(arch, step_tokens=512, prompt_tokens=prompt, **types)

    assert found == prefill_scratch_bytes(arch, step_tokens=step, context_tokens=end, **types)
    assert found <= prefill_scratch_bytes(arch, step_tokens=512, context_tokens=prompt, **types)


def test_in_the_first_step_the_last_layer_has_no_cache_yet():
    """A prompt of one step holds less than the plan, which counts the cache as there: by one layer's of 61."""
    arch = arch_of("671b")

    found = prompt_scratch_bytes(arch, step_tokens=512, prompt_tokens=256, fused_attention=True)

    planned = prefill_scratch_bytes(arch, step_tokens=256, context_tokens=256, fused_attention=True)
    assert planned - found == 256 * 1152


@given(
    kind=st.sampled_from(sorted(CONFIGS)),
    step=st.integers(1, 4096),
    context=st.integers(1, 200_000),
    more_step=st.integers(0, 4096),
    more_context=st.integers(0, 200_000),
    fused=st.booleans(),
    value_bytes=st.sampled_from([2, 4]),
    kv_bits=st.sampled_from([16, 8, 4]),
    quantized=st.booleans(),
)
def test_more_tokens_never_need_less(
    kind, step, context, more_step, more_context, fused, value_bytes, kv_bits, quantized
):
    """Scratch and cache never shrink when the step or the context grows, whatever the types."""
    arch = parse_arch(CONFIGS[kind])
    types = {"value_bytes": value_bytes, "kv_bits": kv_bits}
    small, large = (
        prefill_scratch_bytes(
            arch, step_tokens=steps, context_tokens=tokens, fused_attention=fused, quantized_weights=quantized, **types
        )
        for steps, tokens in ((step, context), (step + more_step, context + more_context))
    )

    assert 0 < small <= large
    assert 0 < kv_cache_bytes(arch, context, **types) <= kv_cache_bytes(arch, context + more_context, **types)


@given(kind=st.sampled_from(sorted(CONFIGS)), context=st.integers(1, 200_000), value_bytes=st.sampled_from([2, 4]))
def test_a_narrower_cache_never_takes_more(kind, context, value_bytes):
    """The cache shrinks with the width of its values, from where the newest tokens, which stay wide, are few."""
    arch = parse_arch(CONFIGS[kind])

    sizes = [kv_cache_bytes(arch, context, value_bytes=value_bytes, kv_bits=bits) for bits in (4, 8, 16)]

    if context <= 256:
        assert sizes == sizes[:1] * 3
    else:
        assert sizes[0] < sizes[1]
        # In two blocks of bfloat16 the newest are half of all.
        assert sizes[1] < (sizes[2] if context > 512 or value_bytes == 4 else 1.07 * sizes[2])


@given(tokens=st.integers(0, 200_000))
def test_the_newest_tokens_of_a_narrow_cache_fill_a_block(tokens):
    """More than 128 tokens are wide, or all; at most 256; codes are chosen for 128 at once."""
    codes = narrow_tokens(tokens)

    assert min(tokens, 129) <= tokens - codes <= 256
    assert codes % 128 == 0


@pytest.mark.parametrize("key", ARCHS)
def test_fewer_bits_and_larger_groups_never_weigh_more(key):
    """The stored size falls with the bits, and with fewer scales."""
    arch = ARCHS[key]
    by_bits = [weight_bytes(arch, Quantization(bits=bits)) for bits in (2, 3, 4, 6, 8, 16)]
    by_group = [weight_bytes(arch, Quantization(bits=4, group_size=size)) for size in (64, 32)]

    assert by_bits == sorted(set(by_bits))
    assert by_group == sorted(set(by_group))


def test_the_4_bit_671b_is_the_published_377_6_gb():
    """The 4-bit 671B is what the Hub's index files say: 377.6 GB."""
    assert weight_bytes(arch_of("671b"), Quantization(bits=4)) / GB == pytest.approx(377.6, abs=0.05)
