"""DeepSeek's attention in blocks: the same numbers as mlx-lm's, in less memory, whatever the step, cache and mask."""

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import BatchKVCache, KVCache

from r1mac import mlx_lm_api
from r1mac.engine.layers.kv import LayerCache, make_kv_cache
from r1mac.engine.layers.latent_attention import install_latent_attention
from r1mac.plan import latent_blocks
from tests.checkpoints import DEEPSEEK_V3

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "mscale": 1.0, "mscale_all_dim": 1.0}
CONFIG = {**DEEPSEEK_V3, "kv_lora_rank": 64, "rope_scaling": YARN}
# 13 heads at a time, or 512 keys, are no divisors of anything here.
SMALL_BLOCKS = 2**16


@pytest.fixture(scope="module")
def models() -> Callable[..., tuple[nn.Module, nn.Module]]:
    """Return a function that gives a random model twice, once with mlx-lm's attention and once with ours."""
    made: dict[Any, tuple[nn.Module, nn.Module]] = {}

    def pair(bits: int = 16, **changes: Any) -> tuple[nn.Module, nn.Module]:
        key = (bits, *changes.items())
        if key not in made:
            mx.random.seed(0)
            theirs = mlx_lm_api.model_skeleton({**CONFIG, **changes})
            if bits < 16:
                nn.quantize(theirs, bits=bits, group_size=32, class_predicate=_is_wide)
            theirs.set_dtype(mx.float32)
            mx.eval(theirs.parameters())
            ours = copy.deepcopy(theirs)
            install_latent_attention(ours)
            made[key] = theirs, ours
        return made[key]

    return pair


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a step of some hundred tokens take several blocks, of heads and of keys."""
    monkeypatch.setattr(latent_blocks, "VALUES_AT_ONCE", SMALL_BLOCKS)
    monkeypatch.setattr(latent_blocks, "LEAST_KEYS", 96)


def _is_wide(path: str, leaf: nn.Module) -> bool:
    return hasattr(leaf, "to_quantized") and leaf.weight.shape[-1] % 32 == 0 and not path.endswith("mlp.gate")


def tokens(count: int, rows: int = 1) -> mx.array:
    return mx.array(
        [[(37 * index + index * index // 5 + 11 * row) % 300 for index in range(count)] for row in range(rows)]
    )


def read(model: nn.Module, cache: list[Any] | None, ids: mx.array, steps: list[int]) -> mx.array:
    """Read *ids* in these steps and return the logits."""
    found, start = [], 0
    for step in steps:
        found.append(model(ids[:, start : start + step], cache=cache))
        mx.eval(found[-1])
        start += step
    assert start == ids.shape[1]
    return mx.concatenate(found, axis=1)


def largest_difference(one: mx.array, other: mx.array) -> float:
    return float(mx.abs(one - other).max())


STEPS = {
    "at once": [500],
    "uneven": [200, 37, 1, 150, 112],
    "short": [300, 2, 4, 8, 17, 31, 32, 106],
    "singly": [495, *[1] * 5],
}


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_logits_are_mlx_lms(steps: list[int], bits: int, models: Any, small_blocks: None) -> None:
    """In blocks and in float32 every logit is mlx-lm's within 1e-5, in any steps, with weights quantised or not."""
    theirs, ours = models(bits)
    expected = read(theirs, [KVCache() for _ in theirs.layers], tokens(500), steps)

    found = read(ours, make_kv_cache(ours), tokens(500), steps)

    assert largest_difference(found, expected) < 1e-5
    assert float(mx.abs(expected).max()) > 0.1


@pytest.mark.parametrize("changes", [{"q_lora_rank": None}, {"kv_lora_rank": 32, "v_head_dim": 96}], ids=str)
def test_other_shapes_are_right_too(changes: dict[str, Any], models: Any, small_blocks: None) -> None:
    """Queries without a latent of their own, and values longer than what they come from."""
    theirs, ours = models(16, **changes)
    expected = read(theirs, [KVCache() for _ in theirs.layers], tokens(300), [150, 10, 140])

    found = read(ours, make_kv_cache(ours), tokens(300), [150, 10, 140])

    assert largest_difference(found, expected) < 1e-5


def test_without_a_cache_and_with_mlx_lms_the_mask_counts(models: Any, small_blocks: None) -> None:
    """No cache, and a cache that is not ours, hand over a mask, which is followed."""
    theirs, ours = models()

    assert largest_difference(ours(tokens(300)), theirs(tokens(300))) < 1e-5
    caches = [[KVCache() for _ in theirs.layers] for _ in range(2)]
    steps = [130, 20, 150]
    found, expected = (
        read(model, cache, tokens(300), steps) for model, cache in zip((ours, theirs), caches, strict=True)
    )
    assert largest_difference(found, expected) < 1e-5


def test_a_mask_of_any_pattern_hides_what_it_says(models: Any, small_blocks: None) -> None:
    """A window over the last 40 tokens gives mlx-lm's result; the string «causal» that of the causal array."""
    theirs, ours = (model.layers[0].self_attn for model in models())
    mx.random.seed(3)
    x = mx.random.normal((1, 250, CONFIG["hidden_size"]))
    window = create_causal_mask(250, window_size=40)
    causal = create_causal_mask(250)

    assert largest_difference(ours(x, window), theirs(x, window)) < 1e-5
    assert largest_difference(ours(x, "causal"), theirs(x, causal)) < 1e-5
    assert largest_difference(theirs(x, window), theirs(x, causal)) > 1e-3


def test_rows_of_several_lengths_are_right(models: Any, small_blocks: None) -> None:
    """Rows padded on the left, as mlx-lm's batches have them, each give what they give alone."""
    theirs, ours = models()
    lengths = [260, 100, 7]
    longest = max(lengths)
    ids = tokens(longest + 40, rows=3)
    padded = mx.stack(
        [mx.concatenate([mx.zeros(longest - count, mx.int32), ids[row, :count]]) for row, count in enumerate(lengths)]
    )
    cache = [BatchKVCache([longest - count for count in lengths]) for _ in ours.layers]

    together = [
        ours(padded, cache=cache),
        ours(ids[:, longest : longest + 40], cache=cache),
        ours(ids[:, :1], cache=cache),
    ]

    for row, count in enumerate(lengths):
        alone = [KVCache() for _ in theirs.layers]
        parts = [ids[row : row + 1, :count], ids[row : row + 1, longest : longest + 40], ids[row : row + 1, :1]]
        for found, part in zip(together, parts, strict=True):
            expected = theirs(part, cache=alone)[0]
            assert largest_difference(found[row, -expected.shape[0] :], expected) < 1e-5


@pytest.mark.parametrize(("kv_bits", "most"), [(8, 0.05), (4, 0.6)])
def test_a_quantised_cache_changes_little(kv_bits: int, most: float, models: Any, small_blocks: None) -> None:
    """With the cache at 8 and 4 bits the logits stay near those of 16, in steps of every kind."""
    _, ours = models()
    wide = read(ours, make_kv_cache(ours), tokens(700), [400, 4, 295, 1])

    narrow = read(ours, make_kv_cache(ours, kv_bits=kv_bits), tokens(700), [400, 4, 295, 1])

    assert 0 < largest_difference(wide, narrow) < most


def test_bfloat16_is_as_near_to_float32_as_mlx_lms(models: Any, small_blocks: None) -> None:
    """In bfloat16 the attention's error beside float32 is no larger than that of mlx-lm's own."""
    theirs, ours = (model.layers[0].self_attn for model in models())
    mx.random.seed(4)
    x = mx.random.normal((1, 300, CONFIG["hidden_size"])).astype(mx.bfloat16)
    mask = create_causal_mask(300)
    exact = theirs(x.astype(mx.float32), mask)
    errors = []
    for module in (theirs, ours):
        half = copy.deepcopy(module)
        half.set_dtype(mx.bfloat16)
        output = half(x, mask)
        assert output.dtype == mx.bfloat16
        errors.append(float(mx.square(output.astype(mx.float32) - exact).mean().sqrt()))

    assert errors[1] < 1.1 * errors[0]


def test_a_long_step_holds_little_more_than_a_short_context(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the context costs a step its cache, no score matrix: far from four times the memory."""
    _, ours = models()
    monkeypatch.setattr(latent_blocks, "VALUES_AT_ONCE", 2**18)
    peaks = []
    for context in (512, 2048):
        cache = [LayerCache() for _ in ours.layers]
        ids = tokens(context)
        read(ours, cache, ids[:, :-256], [256] * (context // 256 - 1))
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        ours(ids[:, -256:], cache=cache)
        mx.eval([layer.state for layer in cache])
        peaks.append(mx.get_peak_memory() - before)

    # Scores of 4 heads x 256 x 1536 in float32 would be 6.3 MB more; the cache of a layer grows by 0.6 MB.
    assert peaks[1] - peaks[0] < 2e6


def test_a_prompts_step_computes_nothing_of_the_last_layer_but_its_cache(models: Any, small_blocks: None) -> None:
    """The other layers are computed block by block; the last one waits for somebody to want its logits."""
    _, ours = models()
    calls: list[int] = []
    evaluate = mx.eval
    cache = make_kv_cache(ours)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mx, "eval", lambda *arrays: (calls.append(len(arrays)), evaluate(*arrays)))
        ours.layers[-1].self_attn(mx.zeros((1, 300, CONFIG["hidden_size"])), None, cache[-1])
        assert not calls
        ours.layers[0].self_attn(mx.zeros((1, 300, CONFIG["hidden_size"])), None, cache[0])

    assert len(calls) > 1


def test_other_architectures_are_left_alone() -> None:
    """A model without latents has nothing to change."""
    model = mlx_lm_api.model_skeleton({**DEEPSEEK_V3, "model_type": "llama", "head_dim": 64})
    before = {name: type(module) for name, module in model.named_modules()}

    install_latent_attention(model)

    assert {name: type(module) for name, module in model.named_modules()} == before
