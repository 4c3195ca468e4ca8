"""Conversations that are kept: found again, private, bounded, one process at a time, never in the way."""

import errno
import os
import resource
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1mac.engine.kept.checkpoint import Checkpoint, CheckpointHeader
from r1mac.engine.request import GenerateRequest, Message, Sampling
from r1mac.errors import NotWritable
from r1mac.prepare import chats
from r1mac.prepare.chats import ChatMessage, KeptChat, latest_chat, new_chat

TALK = (
    ChatMessage(role="system", text="Be brief."),
    ChatMessage(role="user", text="Why? é🙂\udc80"),
    ChatMessage(role="assistant", text="Because.", thought="Hmm.\nWell."),
)
HEADER = CheckpointHeader(
    model="0123",
    request=GenerateRequest(messages=(Message("user", "Why?"),), max_tokens=100, sampling=Sampling(seed=5)),
    prompt_ids=(1, 2, 3),
    kv_bits=16,
    context_tokens=4096,
    started_at_s=1.0,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "chats"


def begin(folder: Path, model: str = "r1", **options: object) -> KeptChat:
    chat, note = new_chat(model, folder=folder, **options)
    assert note is None
    return chat


def kept(folder: Path, text: str, model: str = "r1") -> Path:
    """Keep a conversation that was used a little later than all before it."""
    with begin(folder, model) as chat:
        assert chat.save((ChatMessage(role="user", text=text),)) is None
    used_at_s = time.time() - 10_000 + len(list(folder.iterdir()))
    os.utime(chat.folder / "chat.json", (used_at_s, used_at_s))
    return chat.folder


def texts(chat: KeptChat | None) -> list[str]:
    assert chat is not None
    with chat:
        return [message.text for message in chat.record.messages]


def test_yesterdays_chat_comes_back(folder: Path) -> None:
    """All turns, the thoughts beside them, and the options that it was begun with."""
    with begin(folder, sampling=Sampling(temperature=0.3, seed=9), think=False, kv_bits=8) as chat:
        assert chat.save(TALK) is None

    found = latest_chat("r1", folder=folder)

    assert found is not None
    with found:
        assert found.record.messages == TALK
        assert found.record == chat.record
        assert (found.record.think, found.record.kv_bits) == (False, 8)
        assert found.record.sampling == Sampling(temperature=0.3, seed=9)
        assert found.unfinished is None


def test_the_one_that_was_talked_in_last_comes_back(folder: Path) -> None:
    """Of several, that of this model which was used last, and not the one that was begun last."""
    first = kept(folder, "first")
    kept(folder, "second")
    kept(folder, "another model", model="r2")
    assert texts(latest_chat("r1", folder=folder)) == ["second"]
    os.utime(first / "chat.json")

    assert texts(latest_chat("r1", folder=folder)) == ["first"]
    assert texts(latest_chat("r2", folder=folder)) == ["another model"]
    assert latest_chat("r3", folder=folder) is None


def test_without_any_there_is_none(folder: Path) -> None:
    """A folder that is not there is an empty one, and is not made by looking."""
    assert latest_chat("r1", folder=folder) is None
    assert not folder.exists()


def test_a_reply_that_was_cut_off_comes_back(folder: Path) -> None:
    """The tokens of a reply at work are there for the next process, in the chat that they belong to."""
    with begin(folder) as chat:
        chat.save(TALK[:2])
        checkpoint = Checkpoint.write(chat.checkpoint_path, HEADER)
        checkpoint.append([7, 8, 9])
        checkpoint.close()

    found = latest_chat("r1", folder=folder)

    assert found is not None
    with found:
        assert found.unfinished is not None
        assert (found.unfinished.token_ids, found.unfinished.header) == ((7, 8, 9), HEADER)
        Checkpoint.resume(found.unfinished).discard()
        found.save(TALK)
    again = latest_chat("r1", folder=folder)
    assert again is not None
    with again:
        assert again.unfinished is None


def test_a_chat_in_which_nothing_was_said_leaves_nothing(folder: Path) -> None:
    """Looking in and leaving does not bury the conversation before it."""
    kept(folder, "real")

    with begin(folder):
        pass

    assert len(list(folder.iterdir())) == 1


def test_only_the_newest_are_kept(folder: Path) -> None:
    """Beyond fifty the oldest goes for each new one."""
    folders = [kept(folder, str(number)) for number in range(53)]

    assert len(list(folder.iterdir())) == 50
    assert [path.exists() for path in folders] == [False] * 3 + [True] * 50


def test_an_old_chat_that_is_open_is_not_taken_away(folder: Path) -> None:
    """A process that talks in the oldest conversation keeps it, however many come after."""
    with begin(folder) as chat:
        chat.save(TALK)
        os.utime(chat.folder / "chat.json", (1, 1))
        for number in range(52):
            kept(folder, str(number))

        assert (chat.folder / "chat.json").exists()


def test_what_others_put_there_stays(folder: Path) -> None:
    """Only r1mac's own folders are ever deleted."""
    (folder / "my notes").mkdir(parents=True)
    (folder / "my notes" / "chat.json").write_text("mine")
    os.utime(folder / "my notes" / "chat.json", (1, 1))
    os.utime(folder / "my notes", (1, 1))
    for number in range(52):
        kept(folder, str(number))

    assert (folder / "my notes" / "chat.json").read_text() == "mine"


def test_what_a_killed_process_left_empty_goes(folder: Path) -> None:
    """The folder of a chat whose process was killed before a word is cleared away."""
    chat = begin(folder)
    os.close(chat._lock)  # as the kernel does
    os.utime(chat.folder, (1, 1))

    kept(folder, "next")

    assert not chat.folder.exists()


def test_only_this_user_may_read_it(folder: Path) -> None:
    """Folders and files are private, whatever the umask says."""
    previous = os.umask(0)
    try:
        with begin(folder) as chat:
            chat.save(TALK)
    finally:
        os.umask(previous)

    for path in (folder, chat.folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in chat.folder.iterdir()} == {0o600}


DAMAGES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"format": 2}',
    b'{"format": 1}',
    b'{"format": 1, "model": "r1", "started_at_s": 1, "updated_at_s": 1, "messages": [{"role": "god", "text": ""}]}',
    b'{"format": 1, "model": "r1", "started_at_s": 1, "updated_at_s": 1, "sampling": {"top_p": 7}}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", DAMAGES)
def test_a_damaged_chat_is_left_out_with_a_note(content: bytes, folder: Path) -> None:
    """The one before it comes back, and the note names the file; the damaged one is not deleted."""
    kept(folder, "good")
    damaged = kept(folder, "bad") / "chat.json"
    damaged.write_bytes(content)
    notes: list[str] = []

    found = latest_chat("r1", folder=folder, on_note=notes.append)

    assert texts(found) == ["good"]
    assert len(notes) == 1
    assert str(damaged) in notes[0]
    assert damaged.exists()


def test_a_damaged_reply_does_not_cost_the_chat(folder: Path) -> None:
    """The conversation comes back without its unfinished reply, and a note says so."""
    with begin(folder) as chat:
        chat.save(TALK)
        chat.checkpoint_path.write_bytes(b"\0" * 100)
    notes: list[str] = []

    found = latest_chat("r1", folder=folder, on_note=notes.append)

    assert found is not None
    with found:
        assert found.record.messages == TALK
        assert found.unfinished is None
    assert len(notes) == 1
    assert "lost" in notes[0]


_TALKER = """
import sys, time
from pathlib import Path
from r1mac.prepare.chats import latest_chat
chat = latest_chat("r1", folder=Path(sys.argv[1]))
print("open", flush=True)
time.sleep(60)
"""


def test_two_processes_do_not_go_on_with_one_chat(folder: Path) -> None:
    """While one talks in it the other is told which process that is; after a kill it is free at once."""
    kept(folder, "theirs")
    process = subprocess.Popen([sys.executable, "-c", _TALKER, str(folder)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(NotWritable) as caught:
            latest_chat("r1", folder=folder)
        assert f"process {process.pid}" in caught.value.problem
        assert caught.value.hint
    finally:
        process.kill()
        process.communicate()

    assert texts(latest_chat("r1", folder=folder)) == ["theirs"]


def test_a_full_disk_is_a_note(folder: Path) -> None:
    """The conversation goes on, and what was kept before is not lost."""
    with begin(folder) as chat:
        assert chat.save(TALK) is None
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            note = chat.save((*TALK, ChatMessage(role="user", text="More.")))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert note == f"this chat is not kept: {os.strerror(errno.EFBIG)}"
        assert len(chat.record.messages) == 4

    assert texts(latest_chat("r1", folder=folder)) == [message.text for message in TALK]


def test_a_folder_that_cannot_be_made_is_a_note(tmp_path: Path) -> None:
    """Without a place to keep it the chat is one all the same."""
    (tmp_path / "file").write_text("")

    chat, note = new_chat("r1", folder=tmp_path / "file" / "chats")

    assert note is not None
    with chat:
        assert chat.save(TALK) is not None
        assert chat.record.messages == TALK
    assert latest_chat("r1", folder=tmp_path / "file" / "chats") is None


def test_a_chat_can_be_forgotten(folder: Path) -> None:
    """Nothing of it stays."""
    with begin(folder) as chat:
        chat.save(TALK)
        chat.delete()

    assert list(folder.iterdir()) == []


def test_where_chats_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below R1MAC_HOME, if it is not said otherwise."""
    monkeypatch.setenv("R1MAC_HOME", str(tmp_path))

    chat, _ = chats.new_chat("r1")

    with chat:
        chat.save(TALK)
    assert chat.folder.parent == tmp_path / "chats"
