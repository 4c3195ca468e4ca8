"""A reply at work on the disk survives a kill at any byte, damage, and a full disk."""

import resource
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from r1mac.engine.kept import checkpoint as checkpoint_module
from r1mac.engine.kept.checkpoint import Checkpoint, CheckpointHeader, load_checkpoint
from r1mac.engine.request import AnswerFormat, GenerateRequest, Message, Sampling
from r1mac.errors import BadCheckpoint
from tests.files import write_anew

HEADER = CheckpointHeader(
    model="0123",
    request=GenerateRequest(
        messages=(Message("system", "Be brief."), Message("user", "Why? é🙂\n\udc80")),
        max_tokens=4000,
        sampling=Sampling(temperature=0.6, seed=2**62 + 1, logit_bias=((5, -1.5), (7, 2.0))),
        think_tokens=900,
        think_seconds=2.5,
        stop=("\n\n", "END"),
        answer_format=AnswerFormat(kind="json_schema", text="{}"),
    ),
    prompt_ids=tuple(range(100, 140)),
    kv_bits=16,
    context_tokens=8192,
    started_at_s=1.5,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chats" / "reply.journal"


def written(path: Path, lines: int = 5) -> list[int]:
    """Write a reply in so many lines, and return its tokens."""
    checkpoint = Checkpoint.write(path, HEADER)
    for number in range(lines):
        checkpoint.append(range(10 * number, 10 * number + 7))
        checkpoint.flush()
    checkpoint.close()
    return [token_id for number in range(lines) for token_id in range(10 * number, 10 * number + 7)]


def test_everything_comes_back(path: Path) -> None:
    """What was asked, to the last setting; the tokens; the width, the time and the end."""
    checkpoint = Checkpoint.write(path, HEADER)
    checkpoint.append([1, 2, 3], think_seconds=0.5)
    checkpoint.narrow(8)
    checkpoint.append([4], think_seconds=12.34)
    checkpoint.finish("length")

    saved = load_checkpoint(path)

    assert checkpoint.problem is None
    assert saved.header == HEADER
    assert (saved.token_ids, saved.kv_bits, saved.think_seconds) == ((1, 2, 3, 4), 8, 12.3)
    assert saved.finished == "length"


def test_nothing_but_the_header_is_a_reply_too(path: Path) -> None:
    """A reply that was cut off before its first token can be begun again."""
    Checkpoint.write(path, HEADER).close()

    saved = load_checkpoint(path)

    assert (saved.token_ids, saved.kv_bits, saved.finished) == ((), 16, None)


def test_it_may_be_cut_off_at_any_byte(path: Path) -> None:
    """Whatever is left of the file gives the tokens of its whole lines, and can be gone on with."""
    token_ids = written(path)
    content = path.read_bytes()
    header_bytes = content.index(b"\n") + 1
    counts = []
    for size in range(len(content) + 1):
        write_anew(path, content[:size])
        if size < header_bytes:
            with pytest.raises(BadCheckpoint):
                load_checkpoint(path)
            continue
        saved = load_checkpoint(path)
        assert list(saved.token_ids) == token_ids[: len(saved.token_ids)]
        counts.append(len(saved.token_ids))
        resumed = Checkpoint.resume(saved)
        resumed.append([777])
        resumed.close()
        assert load_checkpoint(path).token_ids == (*saved.token_ids, 777)
    assert sorted(set(counts)) == [0, 7, 14, 21, 28, 35]


def test_a_flipped_bit_ends_the_reply_before_it(path: Path) -> None:
    """No token after damage is believed, since it would stand in another place."""
    token_ids = written(path)
    content = path.read_bytes()
    header_bytes = content.index(b"\n") + 1
    for position in range(len(content)):
        write_anew(path, content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        if position < header_bytes:
            with pytest.raises(BadCheckpoint):
                load_checkpoint(path)
        else:
            found = list(load_checkpoint(path).token_ids)
            assert found == token_ids[: len(found)]
            assert len(found) <= 7 * content[header_bytes:position].count(b"\n")


def test_a_file_of_another_version_is_refused(path: Path) -> None:
    """Another format, or a setting that this version does not know, is not guessed at."""
    for change in ({"format": 2}, {"future": 1}, {"kv_bits": "wide"}, {"request": {}}):
        data = {"format": 1, **checkpoint_module.to_json(HEADER), **change}
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(checkpoint_module._line(data))

        with pytest.raises(BadCheckpoint) as caught:
            load_checkpoint(path)
        assert str(path) in caught.value.problem


def test_tokens_are_written_together_and_within_about_a_second(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token alone costs no write; after a second, or 64 tokens, all that came are on the disk."""
    now = 100.0
    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: now)
    checkpoint = Checkpoint.write(path, HEADER)
    for token_id in range(63):
        checkpoint.append([token_id])
    assert load_checkpoint(path).token_ids == ()

    checkpoint.append([63])
    assert len(load_checkpoint(path).token_ids) == 64
    checkpoint.append([64])
    now += 1.1
    checkpoint.append([65])
    assert load_checkpoint(path).token_ids == tuple(range(66))
    checkpoint.close()


def test_an_append_costs_next_to_nothing(path: Path) -> None:
    """A hundred thousand tokens take less processor time than a model takes for one or two."""
    checkpoint = Checkpoint.write(path, HEADER)
    started = time.process_time()
    for token_id in range(100_000):
        checkpoint.append([token_id], think_seconds=1.0)
    checkpoint.close()

    assert time.process_time() - started < 3
    assert len(load_checkpoint(path).token_ids) == 100_000


def test_only_this_user_may_read_it(path: Path) -> None:
    """The file is private."""
    written(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_discarded_reply_leaves_nothing(path: Path) -> None:
    """The file goes, and no other stays in its place."""
    checkpoint = Checkpoint.write(path, HEADER)
    checkpoint.append([1])

    checkpoint.discard()

    assert list(path.parent.iterdir()) == []


def test_a_full_disk_stops_nothing_and_costs_only_what_came_then(path: Path) -> None:
    """While there is no room the problem is told; when there is again, every token is written after all."""
    checkpoint = Checkpoint.write(path, HEADER)
    checkpoint.append([1, 2])
    checkpoint.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        checkpoint.append(range(3, 60))
        checkpoint.flush()
        assert checkpoint.problem is not None
        assert str(path) in checkpoint.problem
        assert load_checkpoint(path).token_ids == (1, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    checkpoint.append([60])
    checkpoint.finish("stop")

    assert checkpoint.problem is None
    saved = load_checkpoint(path)
    assert saved.token_ids == (1, 2, *range(3, 61))
    assert saved.finished == "stop"


def test_a_reply_with_a_gap_is_never_called_finished(path: Path) -> None:
    """If its last tokens could not be written, the reply is one that can be gone on with."""
    checkpoint = Checkpoint.write(path, HEADER)
    checkpoint.append([1])
    checkpoint.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for the last line, and not for the tokens before it.
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 60, hard))
    try:
        checkpoint.append(range(1000, 1040))
        checkpoint.finish("stop")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    saved = load_checkpoint(path)
    assert (saved.token_ids, saved.finished) == ((1,), None)


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """A checkpoint in an impossible place takes tokens as any other, and says what is wrong."""
    (tmp_path / "file").write_text("")
    checkpoint = Checkpoint.write(tmp_path / "file" / "reply.journal", HEADER)
    for token_id in range(200):
        checkpoint.append([token_id])
    checkpoint.narrow(8)
    checkpoint.finish("stop")
    checkpoint.discard()

    assert checkpoint.problem is not None


_WRITER = """
import itertools, sys
from pathlib import Path
from r1mac.engine.kept.checkpoint import Checkpoint, load_checkpoint
path = Path(sys.argv[1])
saved = load_checkpoint(path)
checkpoint = Checkpoint.resume(saved)
print("ready", flush=True)
for token_id in itertools.count(len(saved.token_ids)):
    checkpoint.append([token_id])
"""


def test_a_process_that_is_killed_again_and_again(path: Path) -> None:
    """Ten kills with SIGKILL: each process goes on where the file ends, and no token is missing or twice."""
    Checkpoint.write(path, replace(HEADER, prompt_ids=(1,))).close()
    lengths = [0]
    for number in range(10):
        process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.01 * number)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        token_ids = load_checkpoint(path).token_ids
        assert token_ids == tuple(range(len(token_ids)))
        lengths.append(len(token_ids))

    assert lengths == sorted(lengths)
    assert lengths[-1] > 1000
