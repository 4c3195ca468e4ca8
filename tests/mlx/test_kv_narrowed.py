"""A cache that is narrowed, copied out, put back and shared while a conversation goes on."""

from collections.abc import Sequence

import mlx.core as mx
import pytest
from mlx import nn

from r1mac import mlx_lm_api
from r1mac.catalog.arch import parse_arch
from r1mac.engine.layers.kv import LayerCache
from r1mac.engine.layers.latent_attention import install_latent_attention
from r1mac.engine.layers.narrow_attention import install_narrow_attention
from r1mac.engine.transcript import Transcript
from r1mac.plan.memory import kv_cache_bytes
from tests.checkpoints import CONFIGS

SHAPES = {
    **{kind: {**CONFIGS[kind], "head_dim": 64, "hidden_size": 256} for kind in ("llama", "qwen2", "qwen3")},
    "deepseek_v3": {**CONFIGS["deepseek_v3"], "kv_lora_rank": 512, "qk_rope_head_dim": 64},
    "short heads": {**CONFIGS["llama"], "head_dim": 32},
    # No group divides 48: these stay wide.
    "odd heads": {**CONFIGS["llama"], "head_dim": 48},
}
TOKEN_IDS = [(37 * index + index * index // 5) % 300 for index in range(700)]
WIDTHS = [(16, 8), (16, 4), (8, 4)]


@pytest.fixture(scope="module", params=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(shape: str) -> nn.Module:
    """Return a random model in float32."""
    mx.random.seed(0)
    model = mlx_lm_api.model_skeleton(SHAPES[shape])
    model.set_dtype(mx.float32)
    install_latent_attention(model)
    install_narrow_attention(model)
    mx.eval(model.parameters())
    return model


def filled(model: nn.Module, token_ids: Sequence[int], *, kv_bits: int = 16, room: int = 0) -> Transcript:
    transcript = Transcript(model, prefill_step_tokens=200, kv_bits=kv_bits)
    transcript.reserve(room)
    list(transcript.prefill(token_ids))
    return transcript


def fed(transcript: Transcript, token_ids: Sequence[int]) -> mx.array:
    """Return the logits after each token, in one step and then singly."""
    logits = [transcript.feed(mx.array(list(token_ids[:-3])))]
    logits += [transcript.feed(mx.array([token_id])) for token_id in token_ids[-3:]]
    transcript.commit(token_ids)
    return mx.concatenate(logits)


def is_same(one: Transcript, other: Transcript) -> bool:
    """Tell whether two transcripts hold the same bits."""
    assert list(one.token_ids) == list(other.token_ids)
    ours, theirs = one.export(0, len(one)), other.export(0, len(other))
    return ours.keys() == theirs.keys() and all(mx.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("wide", "narrow"), WIDTHS)
def test_it_takes_then_what_the_plan_says(wide: int, narrow: int, shape: str, model: nn.Module) -> None:
    """Narrowed in place, also step by step, it takes the planned bytes, and so do the tokens that come after."""
    arch = parse_arch(SHAPES[shape])
    transcript = filled(model, TOKEN_IDS[:300], kv_bits=wide, room=2000)

    transcript.requantize(narrow)

    assert transcript.cache_bytes == kv_cache_bytes(arch, 300, value_bytes=4, kv_bits=narrow)
    fed(transcript, TOKEN_IDS[300:600])
    assert transcript.cache_bytes == kv_cache_bytes(arch, 600, value_bytes=4, kv_bits=narrow)
    assert transcript.kv_bits == narrow


@pytest.mark.parametrize(("wide", "narrow"), WIDTHS)
def test_rows_are_those_that_a_narrow_cache_makes_of_them(wide: int, narrow: int) -> None:
    """Narrowing what was kept gives the very codes that the narrow cache would have made of the same rows."""
    mx.random.seed(1)
    rows = [mx.random.normal((1, 2, count, 128)) for count in (300, 5)]
    cache, fresh = LayerCache(bits=wide), LayerCache(bits=narrow)
    cache.update_and_fetch(rows[0], rows[0] + 1)
    seen = [rows[0], rows[0] + 1] if wide == 16 else list(cache.update_and_fetch(rows[0][:, :, :0], rows[0][:, :, :0]))
    fresh.update_and_fetch(*seen)

    cache.requantize(narrow)

    for layer in (cache, fresh):
        layer.update_and_fetch(rows[1], rows[1])
    ours, theirs = cache.export(0, 305), fresh.export(0, 305)
    assert all(mx.array_equal(ours[name], theirs[name]) for name in theirs)


def test_logits_stay_close(shape: str, model: nn.Module) -> None:
    """A conversation that is narrowed twice in its middle goes on as its precision says, and never widens again."""
    wide = filled(model, TOKEN_IDS[:400])
    expected = fed(wide, TOKEN_IDS[400:500])
    differences = []
    for widths in ((8,), (8, 4), (4, 8)):
        transcript = filled(model, TOKEN_IDS[:400])
        for bits in widths:
            transcript.requantize(bits)
        differences.append(float(mx.abs(fed(transcript, TOKEN_IDS[400:500]) - expected).max()))
        assert transcript.kv_bits == min(widths)

    if shape == "odd heads":
        assert differences == [0, 0, 0]
    else:
        assert 0 < differences[0] < 0.1
        assert all(differences[0] < difference < 1 for difference in differences[1:])


def test_beside_the_cache_is_no_more_than_one_layer() -> None:
    """While many layers are narrowed, what is held on top stays within one layer's values, and what was freed is."""
    rows = mx.ones((1, 4, 2047, 64))
    layers = [LayerCache() for _ in range(12)]
    for layer in layers:
        layer.update_and_fetch(rows, rows)
    mx.eval([layer.state for layer in layers])
    layer_bytes = layers[0].nbytes
    # One block of eight stays wide besides.
    for narrow, share in ((8, (8 + 2) / 32 + 1 / 8), (4, (4 + 2) / 32 + 1 / 8)):
        mx.clear_cache()
        before, others = sum(layer.nbytes for layer in layers), mx.get_active_memory()
        mx.reset_peak_memory()

        for layer in layers:
            layer.requantize(narrow)

        after = sum(layer.nbytes for layer in layers)
        assert after == round(12 * layer_bytes * share)
        # MLX keeps some numbers of what it compiles.
        assert 0 <= mx.get_active_memory() - (others - before + after) < 1024
        # At most one layer's values in full width, and what becomes of one of its two tensors.
        assert mx.get_peak_memory() - others <= 1.1 * layer_bytes


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_what_is_copied_out_can_be_put_back(bits: int, model: nn.Module) -> None:
    """Stored parts, block after block, make a cache of the same bits, which goes on with the same logits.

    What was narrow is: of the newest tokens only the codes are copied.
    """
    transcript = filled(model, TOKEN_IDS[:600], kv_bits=bits)
    copy = Transcript(model, prefill_step_tokens=200, kv_bits=bits)

    for start, stop in ((0, 256), (256, 512), (512, 600)):
        copy.load(TOKEN_IDS[start:stop], transcript.export(start, stop))

    assert is_same(copy, transcript)
    difference = mx.abs(fed(copy, TOKEN_IDS[600:650]) - fed(transcript, TOKEN_IDS[600:650])).max()
    assert float(difference) <= {16: 0, 8: 0.1, 4: 1}[bits]


def test_what_does_not_belong_is_refused(model: nn.Module, shape: str) -> None:
    """Parts of another width, another shape, too few layers or tokens: refused, and what was there stays as it was."""
    transcript, expected = (filled(model, TOKEN_IDS[:256], kv_bits=8) for _ in range(2))
    good = filled(model, TOKEN_IDS[:512], kv_bits=8).export(256, 512)
    first = next(iter(good))
    bad = {
        "a layer less": {name: array for name, array in good.items() if not name.startswith("1.")},
        "a layer more": {**good, "99.keys": good[first]},
        "an array less": {name: array for name, array in good.items() if name != first},
        "another shape": {**good, first: good[first][..., :-1]},
        "fewer tokens": {name: array[:, :, :-1] for name, array in good.items()},
        "another type": {**good, first: good[first].astype(mx.float16)},
        "fewer dimensions": {name: array[0] for name, array in good.items()},
    }
    if shape != "odd heads":
        bad["another width"] = filled(model, TOKEN_IDS[:512], kv_bits=16).export(256, 512)

    for arrays in bad.values():
        with pytest.raises(ValueError, match=r"."):
            transcript.load(TOKEN_IDS[256:512], arrays)
        assert is_same(transcript, expected)
    transcript.load(TOKEN_IDS[256:512], good)
    assert len(transcript) == 512


@pytest.mark.parametrize("bits", [16, 8])
def test_two_that_share_memory_do_not_disturb_each_other(bits: int, model: nn.Module) -> None:
    """What was put aside is as it was, whatever the transcript reads on, and the other way round."""
    transcript = filled(model, TOKEN_IDS[:300], kv_bits=bits)
    held = transcript.hold(290)
    transcript.keep(100)
    other_ids = [token_id + 7 for token_id in TOKEN_IDS[:300]]
    list(transcript.prefill(other_ids[100:300]))
    second = Transcript(model, prefill_step_tokens=200, kv_bits=bits)
    second.adopt(held)
    second_logits = fed(second, TOKEN_IDS[290:320])
    third = Transcript(model, prefill_step_tokens=200)
    third.adopt(held)

    assert is_same(transcript, filled_like(model, [*TOKEN_IDS[:100], *other_ids[100:300]], 300, bits))
    assert mx.array_equal(fed(third, TOKEN_IDS[290:320]), second_logits)
    assert third.kv_bits == bits


def test_it_goes_on_token_by_token_from_any_cut(model: nn.Module) -> None:
    """Cut within the codes, at their end or to nothing, put aside or not, single tokens go on as a step of them does."""
    whole = filled(model, TOKEN_IDS[:600], kv_bits=8).hold(600)
    rest = [token_id + 7 for token_id in TOKEN_IDS[:5]]
    for kept in (0, 100, 200, 300, 600):
        for fitted in (False, True):
            transcript, other = (Transcript(model, prefill_step_tokens=200) for _ in range(2))
            for one in (transcript, other):
                one.adopt(whole)
                one.keep(kept)
            transcript.adopt(transcript.hold(kept, fitted=fitted))

            singly = mx.concatenate([transcript.feed(mx.array([token_id])) for token_id in rest])

            assert float(mx.abs(singly - other.feed(mx.array(rest))).max()) < 1e-3


def filled_like(model: nn.Module, token_ids: Sequence[int], first: int, bits: int) -> Transcript:
    """Return a transcript that read the first 300 tokens of the conversation, went back to 100 and read these."""
    transcript = filled(model, TOKEN_IDS[:first], kv_bits=bits)
    transcript.keep(100)
    list(transcript.prefill(token_ids[100:]))
    return transcript


def test_putting_aside_costs_nothing_until_it_is_written_to() -> None:
    """Neither putting a cache aside nor taking it back copies it."""
    mx.random.seed(0)
    model = mlx_lm_api.model_skeleton(SHAPES["llama"])
    transcript = filled(model, TOKEN_IDS[:512], room=600)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()

    held = transcript.hold(512)
    transcript.forget()
    transcript.adopt(held)
    del held
    fed(transcript, TOKEN_IDS[512:520])
    mx.eval(list(transcript.export(0, 1).values()))

    assert mx.get_active_memory() - before < 0.1 * transcript.cache_bytes


@pytest.mark.parametrize("bits", [8, 4])
def test_a_short_step_takes_one_layer_apart_at_a_time(bits: int) -> None:
    """A few tokens behind many (words that close a thought, drafts) hold the same in passing, however many layers."""
    passing = []
    for layers in (3, 12):
        model = mlx_lm_api.model_skeleton({**CONFIGS["llama"], "num_hidden_layers": layers})
        transcript = Transcript(model, prefill_step_tokens=256, kv_bits=bits)
        list(transcript.prefill([number % 300 for number in range(950)]))
        mx.clear_cache()
        mx.reset_peak_memory()
        list(transcript.prefill([5, 6]))
        passing.append(mx.get_peak_memory() - mx.get_active_memory())

    # Not to the byte: how much of a layer is freed before the next one begins is for MLX's thread to say.
    assert passing[1] < 1.8 * passing[0]
