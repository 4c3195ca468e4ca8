"""What was read is not read again: after a restart, and when conversations take turns."""

from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import pytest
from mlx import nn

from r1mac import mlx_lm_api
from r1mac.engine.kept.block_folder import BlockFolder
from r1mac.engine.kept.prompt_cache import PromptCache
from r1mac.engine.layers.latent_attention import install_latent_attention
from r1mac.engine.layers.narrow_attention import install_narrow_attention
from r1mac.engine.transcript import Transcript
from tests.checkpoints import CONFIGS

# Three whole blocks and a tail.
TOKEN_IDS = [(37 * index + index * index // 5) % 300 for index in range(868)]
OTHER_IDS = [(token_id + 11) % 300 for token_id in TOKEN_IDS]


@pytest.fixture(scope="module")
def models() -> Callable[..., nn.Module]:
    """Return a function that gives a random model of an architecture."""
    made: dict[tuple[str, mx.Dtype], nn.Module] = {}

    def model(kind: str, dtype: mx.Dtype = mx.float32) -> nn.Module:
        if (kind, dtype) not in made:
            mx.random.seed(0)
            made[kind, dtype] = mlx_lm_api.model_skeleton(CONFIGS[kind])
            made[kind, dtype].set_dtype(dtype)
            install_latent_attention(made[kind, dtype])
            install_narrow_attention(made[kind, dtype])
            mx.eval(made[kind, dtype].parameters())
        return made[kind, dtype]

    return model


@pytest.fixture
def model(models: Callable[..., nn.Module]) -> nn.Module:
    return models("llama")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prompt-cache"


def cache_in(folder: Path, *, model: str = "m", computing: str = "float32", limit_bytes: int = 10**9) -> PromptCache:
    """Return a prompt cache as a fresh process opens it."""
    return PromptCache(BlockFolder(folder, limit_bytes=limit_bytes), model=model, computing=computing)


def filled(model: nn.Module, token_ids: Sequence[int], *, kv_bits: int = 16) -> Transcript:
    transcript = Transcript(model, prefill_step_tokens=200, kv_bits=kv_bits)
    list(transcript.prefill(token_ids))
    return transcript


def is_same(one: Transcript, other: Transcript, tokens: int) -> bool:
    """Tell whether two transcripts begin with the same tokens and bits."""
    ours, theirs = one.export(0, tokens), other.export(0, tokens)
    same_ids = list(one.token_ids)[:tokens] == list(other.token_ids)[:tokens]
    return same_ids and ours.keys() == theirs.keys() and all(mx.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    # On a CPU MLX multiplies experts in float32 only.
    [*((kind, mx.float32) for kind in CONFIGS), ("llama", mx.bfloat16), ("qwen2", mx.float16)],
)
def test_after_a_restart_nothing_is_read_again(
    kind: str, dtype: mx.Dtype, bits: int, folder: Path, models: Callable[..., nn.Module]
) -> None:
    """A fresh process holds every token of the conversation, as it is stored, in every width and type."""
    model = models(kind, dtype)
    before = filled(model, TOKEN_IDS, kv_bits=bits)
    stored = cache_in(folder).store(before)
    after = Transcript(model, prefill_step_tokens=200, kv_bits=bits)
    question = [*TOKEN_IDS, 5, 6, 7]

    expected = cache_in(folder).longest(question, kv_bits=bits)
    adopted = cache_in(folder).adopt(after, question)

    assert adopted is not None
    assert (stored.tokens, stored.note, expected, adopted.tokens, adopted.note) == (868, None, 868, 868, None)
    assert adopted.source == "disk"
    assert after.rewind_to(question) == 868
    assert is_same(after, before, 868)
    # Of a narrow cache's newest tokens, which were wide, the disk has the codes.
    difference = mx.abs(after.feed(mx.array([5, 6])) - before.feed(mx.array([5, 6]))).max()
    assert float(difference) <= {16: 0, 8: 0.1, 4: 1}[bits]


def test_a_conversation_that_leaves_the_stored_one_takes_what_they_share(folder: Path, model: nn.Module) -> None:
    """The shared tokens are taken to the last, also where they end within a block or within the tail."""
    before = filled(model, TOKEN_IDS)
    cache_in(folder).store(before)
    for shared in (300, 512, 800):
        transcript = Transcript(model, prefill_step_tokens=200)
        question = [*TOKEN_IDS[:shared], *OTHER_IDS[shared:]]

        adopted = cache_in(folder).adopt(transcript, question)

        assert adopted is not None
        assert adopted.tokens == transcript.rewind_to(question) == shared
        assert is_same(transcript, before, shared)


def test_the_last_token_of_a_question_is_always_left_to_be_read(folder: Path, model: nn.Module) -> None:
    """The very conversation that is stored is taken but for its last token, whose logits are wanted."""
    cache_in(folder).store(filled(model, TOKEN_IDS))
    transcript = Transcript(model, prefill_step_tokens=200)

    cache_in(folder).adopt(transcript, TOKEN_IDS)

    assert transcript.rewind_to(TOKEN_IDS) == 867


def test_what_is_in_the_transcript_is_not_fetched(folder: Path, model: nn.Module) -> None:
    """Only blocks that the transcript lacks come from the disk, and none where it has as much."""
    before = filled(model, TOKEN_IDS)
    cache_in(folder).store(before)
    transcript = filled(model, TOKEN_IDS[:600])
    # What was used last is the chain's beginning. Read, it would be found damaged and dropped.
    first = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    first.write_bytes(b"")

    adopted = cache_in(folder).adopt(transcript, [*TOKEN_IDS, 5])
    again = cache_in(folder).adopt(transcript, [*TOKEN_IDS, 5])

    assert adopted is not None
    assert adopted.tokens == 868
    assert again is None
    assert first.exists()
    assert is_same(transcript, before, 868)


def test_only_what_is_new_is_written(folder: Path, model: nn.Module) -> None:
    """A reply at work is written block by block, each once; a tail gives way to the block that it becomes."""
    transcript = filled(model, TOKEN_IDS[:600])
    cache = cache_in(folder)
    first = cache.store(transcript)
    files = {path.name: path.stat().st_ino for path in folder.iterdir()}
    list(transcript.prefill(TOKEN_IDS[600:760]))

    nothing = cache.store(transcript, tail=False)
    assert (nothing.tokens, nothing.written_bytes) == (512, 0)
    list(transcript.prefill(TOKEN_IDS[760:]))
    second = cache.store(transcript, tail=False)
    third = cache.store(transcript)
    again = cache.store(transcript)

    assert (first.tokens, second.tokens, third.tokens, again.tokens) == (600, 768, 868, 868)
    assert again.written_bytes == 0
    left = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert len(files) == 3
    assert len(files.items() & left.items()) == 2  # the tail of 88 tokens is part of the third block now
    assert len(left) == 4
    assert first.written_bytes + second.written_bytes + third.written_bytes >= sum(
        path.stat().st_size for path in folder.iterdir()
    )


def test_conversations_share_what_they_begin_with(folder: Path, model: nn.Module) -> None:
    """Two conversations with one system prompt have its blocks once, and both come back whole."""
    one = filled(model, [*TOKEN_IDS[:512], *TOKEN_IDS[512:800]])
    other = filled(model, [*TOKEN_IDS[:512], *OTHER_IDS[512:800]])
    cache = cache_in(folder)
    first, second = cache.store(one), cache.store(other)

    assert len(list(folder.iterdir())) == 2 + 2 + 2
    assert second.written_bytes < 0.7 * first.written_bytes
    for transcript in (one, other):
        fresh = Transcript(model, prefill_step_tokens=200)
        cache_in(folder).adopt(fresh, [*transcript.token_ids, 5])
        assert is_same(fresh, transcript, 800)


def test_only_the_part_that_is_worth_it_is_stored(folder: Path, model: nn.Module) -> None:
    """A thought behind the prompt is left out where the caller says so."""
    stored = cache_in(folder).store(filled(model, TOKEN_IDS), 300)

    assert stored.tokens == 300
    assert cache_in(folder).longest([*TOKEN_IDS, 5], kv_bits=16) == 300


def test_a_thought_that_is_over_gives_its_room_back(folder: Path, model: nn.Module) -> None:
    """What was stored behind the prompt while the reply was written goes; the prompt, and others' blocks, stay."""
    cache = cache_in(folder)
    cache.store(filled(model, OTHER_IDS))
    others = set(folder.iterdir())
    transcript = filled(model, TOKEN_IDS)
    cache.store(transcript)

    cache.drop_after(transcript, 300)

    assert len(set(folder.iterdir()) - others) == 2
    assert others < set(folder.iterdir())
    assert cache_in(folder).longest([*TOKEN_IDS, 5], kv_bits=16) == 512
    assert cache_in(folder).longest([*OTHER_IDS, 5], kv_bits=16) == 868


@pytest.mark.parametrize(
    "other", [{"model": "another"}, {"computing": "bfloat16"}, {"kv_bits": 8}, {"token_ids": [1, *TOKEN_IDS[1:]]}]
)
def test_what_belongs_elsewhere_is_never_taken(other: dict, folder: Path, model: nn.Module) -> None:
    """Blocks of another model, type, width or text are not even seen."""
    cache_in(folder).store(filled(model, TOKEN_IDS))
    kv_bits, token_ids = other.pop("kv_bits", 16), other.pop("token_ids", TOKEN_IDS)
    transcript = Transcript(model, prefill_step_tokens=200, kv_bits=kv_bits)

    assert cache_in(folder, **other).longest([*token_ids, 5], kv_bits=kv_bits) == 0
    assert cache_in(folder, **other).adopt(transcript, [*token_ids, 5]) is None
    assert len(transcript) == 0


def test_a_narrowed_conversation_is_stored_as_it_is_then(folder: Path, model: nn.Module) -> None:
    """What was narrowed in mid-reply comes back narrow."""
    before = filled(model, TOKEN_IDS)
    before.requantize(4)
    cache_in(folder).store(before)
    after = Transcript(model, prefill_step_tokens=200, kv_bits=4)

    cache_in(folder).adopt(after, [*TOKEN_IDS, 5])

    assert is_same(after, before, 868)


def test_fetching_takes_no_second_copy(folder: Path) -> None:
    """While a long conversation is fetched, beside its cache there are a few blocks, not the cache once more."""
    config = {**CONFIGS["llama"], "num_hidden_layers": 6}
    mx.random.seed(0)
    model = mlx_lm_api.model_skeleton(config)
    before = filled(model, [token_id % 300 for token_id in range(256 * 16)])
    cache_in(folder).store(before)
    after = Transcript(model, prefill_step_tokens=200)
    mx.clear_cache()
    start = mx.get_active_memory()
    mx.reset_peak_memory()

    cache_in(folder).adopt(after, [*before.token_ids, 5])

    one_block = before.cache_bytes / 16
    assert len(after) == 4096
    assert mx.get_peak_memory() - start - after.cache_bytes < 3 * one_block


def in_memory(limit_bytes: int) -> PromptCache:
    return PromptCache(None, model="m", computing="float32", memory_bytes=limit_bytes)


def test_conversations_that_take_turns_stay_in_memory(model: nn.Module) -> None:
    """A, B, A: neither is read twice, and nothing of one is mixed into the other."""
    one, other = filled(model, TOKEN_IDS), filled(model, OTHER_IDS)
    transcript = filled(model, TOKEN_IDS)
    cache = in_memory(10**8)
    for conversation, expected in ((other, 0), (one, 868), (other, 868), (one, 868)):
        question = [*conversation.token_ids, 5]
        cache.adopt(transcript, question)

        shared = transcript.rewind_to(question)

        assert shared == expected
        list(transcript.prefill(question[shared:-1]))
        assert is_same(transcript, conversation, 868)


def test_a_beginning_that_two_share_serves_both(model: nn.Module) -> None:
    """A new conversation takes the other's system prompt, and the other is whole when its turn comes."""
    one = filled(model, TOKEN_IDS)
    transcript = filled(model, TOKEN_IDS)
    cache = in_memory(10**8)
    branch = [*TOKEN_IDS[:500], *OTHER_IDS[500:800]]

    cache.adopt(transcript, branch)
    assert transcript.rewind_to(branch) == 500
    list(transcript.prefill(branch[500:]))
    adopted = cache.adopt(transcript, [*TOKEN_IDS, 5])

    assert adopted is not None
    assert (adopted.tokens, adopted.source) == (868, "memory")
    assert is_same(transcript, one, 868)


def test_a_thought_is_not_put_aside(model: nn.Module) -> None:
    """Only what the next prompt can begin with takes memory: the next turn of a chat leaves nothing behind."""
    transcript = filled(model, TOKEN_IDS)
    cache = in_memory(10**8)

    cache.adopt(transcript, [*TOKEN_IDS[:400], *OTHER_IDS[400:500]], worth_tokens=400)
    assert len(cache.held) == 0
    cache.adopt(transcript, OTHER_IDS, worth_tokens=400)

    assert len(cache.held) == 1
    assert cache.held.longest(TOKEN_IDS)[1] == 400


def test_what_is_put_aside_is_bounded(model: nn.Module) -> None:
    """Beyond the limit the least recently used conversation goes; one that alone is too large is not kept."""
    conversations = [[(token_id + shift) % 300 for token_id in TOKEN_IDS] for shift in (0, 1, 2, 3)]
    size = filled(model, TOKEN_IDS).cache_bytes
    cache = in_memory(2 * size)
    transcript = Transcript(model, prefill_step_tokens=200)
    for conversation in conversations:
        cache.adopt(transcript, [*conversation, 5])
        transcript.rewind_to(conversation)
        list(transcript.prefill(conversation[len(transcript) :]))
        assert cache.held.nbytes <= 2 * size

    known = [cache.held.longest(conversation)[1] for conversation in conversations]
    assert known == [0, 868, 868, 0]  # the last one is the transcript's
    small = in_memory(size // 2)
    small.adopt(transcript, [*conversations[0], 5])
    assert len(small.held) == 0


def test_what_comes_back_is_as_narrow_as_the_session_is_now(model: nn.Module) -> None:
    """Put aside at 16 bits, it takes 8 when the session was narrowed meanwhile."""
    transcript = filled(model, TOKEN_IDS)
    cache = in_memory(10**8)
    cache.adopt(transcript, OTHER_IDS)
    list(transcript.prefill(OTHER_IDS))
    transcript.requantize(8)

    cache.adopt(transcript, [*TOKEN_IDS, 5])

    expected = filled(model, TOKEN_IDS)
    expected.requantize(8)
    assert transcript.kv_bits == 8
    assert is_same(transcript, expected, 868)


def test_the_longer_of_memory_and_disk_is_taken(folder: Path, model: nn.Module) -> None:
    """What memory has of a conversation is passed over where the disk has more."""
    cache_in(folder).store(filled(model, TOKEN_IDS))
    cache = PromptCache(BlockFolder(folder, limit_bytes=10**9), model="m", computing="float32", memory_bytes=10**8)
    transcript = filled(model, TOKEN_IDS[:600])
    cache.adopt(transcript, OTHER_IDS)
    list(transcript.prefill(OTHER_IDS))

    adopted = cache.adopt(transcript, [*TOKEN_IDS, 5])

    assert adopted is not None
    assert (adopted.tokens, adopted.source) == (868, "disk")
