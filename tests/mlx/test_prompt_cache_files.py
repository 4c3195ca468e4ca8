"""Blocks on a real disk: damaged, too many, without room, under a kill, and with two processes at once."""

import multiprocessing
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import pytest
from mlx import nn

from r1mac import mlx_lm_api
from r1mac.engine.kept.block_folder import BlockFolder
from r1mac.engine.kept.prompt_cache import PromptCache
from r1mac.engine.transcript import Transcript
from r1mac.machine.disk import free_disk_bytes
from tests.checkpoints import CONFIGS

TOKEN_IDS = [(37 * index + index * index // 5) % 300 for index in range(868)]
QUESTION = [*TOKEN_IDS, 5]


def make_model() -> nn.Module:
    mx.random.seed(0)
    model = mlx_lm_api.model_skeleton(CONFIGS["llama"])
    mx.eval(model.parameters())
    return model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make_model()


@pytest.fixture(scope="module")
def truth(model: nn.Module) -> Transcript:
    return filled(model, TOKEN_IDS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prompt-cache"


def cache_in(folder: Path, limit_bytes: int | None = 10**9) -> PromptCache:
    return PromptCache(BlockFolder(folder, limit_bytes=limit_bytes), model="m", computing="float32")


def filled(model: nn.Module, token_ids: list[int]) -> Transcript:
    transcript = Transcript(model, prefill_step_tokens=868)
    list(transcript.prefill(token_ids))
    return transcript


def shifted(count: int) -> list[int]:
    return [(token_id + count) % 300 for token_id in TOKEN_IDS]


def restored(model: nn.Module, folder: Path, question: list[int] = QUESTION) -> Transcript:
    transcript = Transcript(model, prefill_step_tokens=868)
    cache_in(folder).adopt(transcript, question)
    return transcript


def is_true(transcript: Transcript, truth: Transcript) -> bool:
    """Tell whether all that *transcript* holds is what the model itself would hold."""
    tokens = len(transcript)
    ours, theirs = transcript.export(0, tokens), truth.export(0, tokens)
    same_ids = list(transcript.token_ids) == list(truth.token_ids)[:tokens]
    return same_ids and (not tokens or all(mx.array_equal(ours[name], theirs[name]) for name in theirs))


def chain(folder: Path) -> list[Path]:
    """Return the blocks of the one conversation that is stored, in order."""
    return sorted(folder.iterdir(), key=lambda path: -path.stat().st_mtime_ns)


def flip(path: Path, position: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_any_flipped_bit_is_noticed(folder: Path, model: nn.Module, truth: Transcript) -> None:
    """Wherever a bit of any block is wrong: that block is dropped, those before it are used, nothing wrong ever is."""
    cache_in(folder).store(truth)
    dice = random.Random(3)
    for _ in range(40):
        number = dice.randrange(4)
        path = chain(folder)[number]
        size = path.stat().st_size
        # The header is a few thousand bytes of some hundred thousand: half of the flips are to be there.
        flip(path, dice.randrange(size if dice.random() < 0.5 else 4000), dice.randrange(8))

        transcript = restored(model, folder)

        assert len(transcript) == number * 256
        assert is_true(transcript, truth)
        assert not path.exists()
        assert cache_in(folder).store(truth).tokens == 868


@pytest.mark.parametrize("number", range(4))
def test_truncated_blocks_are_dropped(number: int, folder: Path, model: nn.Module, truth: Transcript) -> None:
    """A block that is cut off anywhere, empty, or longer than it was, is dropped with a note."""
    cache_in(folder).store(truth)
    whole = chain(folder)[number].read_bytes()
    for content in (b"", whole[:5], whole[:100], whole[:3000], whole[:-1], whole + b"\0", b"\xff" * 5000):
        path = chain(folder)[number]
        path.write_bytes(content)
        os.utime(path, ns=(time.time_ns(),) * 2)
        transcript = Transcript(model, prefill_step_tokens=868)

        adopted = cache_in(folder).adopt(transcript, QUESTION)

        assert len(transcript) == number * 256
        assert is_true(transcript, truth)
        assert not path.exists()
        # The tail is looked for by its header, so a bad one is not even seen.
        if adopted is not None and number < 3:
            assert adopted.note is not None
            assert f"{868 - number * 256} tokens are read again" in adopted.note
        cache_in(folder).store(truth)


def test_a_block_under_another_name_is_not_believed(folder: Path, model: nn.Module, truth: Transcript) -> None:
    """Whole blocks that were renamed, or put in the place of one another, are dropped."""
    cache_in(folder).store(truth)
    first, second, third, _tail = chain(folder)
    content = second.read_bytes()
    second.write_bytes(third.read_bytes())
    third.write_bytes(content)

    transcript = restored(model, folder)

    assert len(transcript) == 256
    assert not second.exists()
    assert first.exists()


def test_the_least_recently_used_conversation_goes_first(folder: Path, model: nn.Module) -> None:
    """Over the limit, what was not used for the longest time goes, from its end; use counts, not age."""
    conversations = [shifted(count) for count in range(3)]
    cache_in(folder).store(filled(model, conversations[0]))
    one_bytes = BlockFolder(folder).size_bytes
    limit_bytes = round(2.3 * one_bytes)
    cache_in(folder, limit_bytes).store(filled(model, conversations[1]))
    restored(model, folder, [*conversations[0], 5])

    cache_in(folder, limit_bytes).store(filled(model, conversations[2]))

    known = [cache_in(folder).longest([*conversation, 5], kv_bits=16) for conversation in conversations]
    assert known[0] == known[2] == 868
    assert 0 < known[1] < 868
    assert known[1] % 256 == 0
    assert BlockFolder(folder).size_bytes <= limit_bytes


def test_a_conversation_that_is_too_long_keeps_its_beginning(folder: Path, model: nn.Module, truth: Transcript) -> None:
    """Where the limit does not allow all of it, the first blocks are kept, and a note names the limit."""
    cache_in(folder).store(truth)
    one_block = chain(folder)[0].stat().st_size
    for path in folder.iterdir():
        path.unlink()

    stored = cache_in(folder, round(2.5 * one_block)).store(truth)

    assert stored.tokens == 512
    assert stored.note is not None
    assert "may take" in stored.note
    assert len(restored(model, folder)) == 512
    assert cache_in(folder, 0).store(filled(model, shifted(9))).tokens == 0


def test_without_a_word_a_small_share_of_the_disk_is_taken(folder: Path) -> None:
    """The limit is a twentieth of what is free, and at most 20 GB."""
    expected = min(20e9, 0.05 * free_disk_bytes(folder))

    assert BlockFolder(folder).limit_bytes == pytest.approx(expected, rel=0.05)


def test_only_this_user_may_read_it(folder: Path, truth: Transcript) -> None:
    """The folder and every file in it are private, whatever the umask says."""
    previous = os.umask(0)
    try:
        cache_in(folder).store(truth)
    finally:
        os.umask(previous)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let this process write no larger file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_a_note(folder: Path, model: nn.Module, truth: Transcript) -> None:
    """Nothing is raised, nothing half-written stays, and what was stored before is still good."""
    cache_in(folder).store(truth, 512)
    cache = cache_in(folder)
    with largest_file(100_000):
        stored = cache.store(truth)
        again = cache.store(truth)

    assert stored.tokens == again.tokens == 512
    assert again.note is None, "a reply at work would say it every few seconds"
    assert stored.note is not None
    assert "File too large" in stored.note
    assert len(list(folder.iterdir())) == 2
    assert is_true(restored(model, folder), truth)


def test_a_folder_that_cannot_be_used_is_a_note(tmp_path: Path, model: nn.Module, truth: Transcript) -> None:
    """A file in the folder's place, or in its parent's, stops neither storing nor looking."""
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        stored = cache_in(folder).store(truth)

        assert (stored.tokens, stored.written_bytes) == (0, 0)
        assert stored.note is not None
        assert len(restored(model, folder)) == 0


def test_files_of_others_are_left_alone(folder: Path, truth: Transcript) -> None:
    """What r1mac did not put there is neither counted nor deleted."""
    folder.mkdir()
    (folder / "notes.txt").write_text("x" * 10**6)

    cache_in(folder, 10**6).store(truth)

    assert (folder / "notes.txt").exists()
    assert BlockFolder(folder).size_bytes < 10**6


_WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.mlx.test_prompt_cache_files import cache_in, filled, make_model, shifted
model = make_model()
print("ready", flush=True)
for count in range(1000):
    cache_in(Path({folder!r}), 3_000_000).store(filled(model, shifted(count % 7)))
"""


def test_a_writer_that_is_killed_leaves_nothing_wrong(folder: Path, model: nn.Module) -> None:
    """Killed with SIGKILL while it writes: every block that is there is whole, and leftovers go in time."""
    dice = random.Random(5)
    script = _WRITER.format(root=str(Path(__file__).parents[2]), folder=str(folder))
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.3 + dice.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()

    names = {path.name for path in folder.glob("*.safetensors")}
    reached = []
    for count in range(7):
        transcript = restored(model, folder, [*shifted(count), 5])
        assert is_true(transcript, filled(model, shifted(count)))
        reached.append(len(transcript))
    assert sum(reached) > 0
    assert {path.name for path in folder.glob("*.safetensors")} == names, "a whole block was dropped"
    # As if the kill had come in the middle of a write, ten minutes and more ago.
    leftover = folder / ".0000-1111-22.new"
    leftover.write_bytes(b"x" * 1000)
    os.utime(leftover, ns=(time.time_ns() - 11 * 60 * 10**9,) * 2)
    cache_in(folder).store(filled(model, shifted(8)))
    assert not leftover.exists()


def talk(folder: Path, seed: int) -> str:
    """Store and fetch conversations for a while; return what went wrong."""
    model = make_model()
    dice = random.Random(seed)
    truths = [filled(model, shifted(count)) for count in range(4)]
    for _ in range(25):
        truth = dice.choice(truths)
        if dice.random() < 0.5:
            stored = cache_in(folder, 2_000_000).store(truth, dice.randrange(100, 868))
            if stored.note is not None and "may take" not in stored.note:
                return stored.note
        elif not is_true(restored(model, folder, [*truth.token_ids, 5]), truth):
            return "wrong content"
    return ""


def test_two_processes_at_once(folder: Path) -> None:
    """Two that store, fetch and give up the same conversations in one small folder never see anything wrong."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(talk, [(folder, 1), (folder, 2)])

    assert found == ["", ""]
    assert BlockFolder(folder).size_bytes < 2_000_000 + 2 * 300_000
    assert not list(folder.glob("*.new"))
    assert not list(folder.glob(".*"))
