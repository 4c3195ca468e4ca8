"""Small files are there whole or not at all, whoever writes and whatever ends it."""

import errno
import multiprocessing
import os
import stat

import pytest

from r1mac import durable


def test_a_file_keeps_its_link_and_its_permissions(tmp_path):
    real, link = tmp_path / "dotfiles.toml", tmp_path / "home" / "config.toml"
    link.parent.mkdir()
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    durable.write_whole(link, "new\n")

    assert link.is_symlink()
    assert real.read_text() == "new\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dotfiles.toml", "home"]


def test_a_disk_that_takes_nothing_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    durable.write_whole(path, "old")

    def no_room(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "to_disk", no_room)
    with pytest.raises(OSError, match="No space"):
        durable.write_whole(path, "new")

    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_the_drives_own_cache_is_passed_where_the_system_can(tmp_path, monkeypatch):
    """On macOS a plain fsync is not enough: each file is flushed through the drive before it gets its name."""
    flushed, named = [], []
    fcntl = durable.fcntl.fcntl

    def asked(descriptor, what, *rest):
        if what != 51:
            return fcntl(descriptor, what, *rest)
        flushed.append(os.fstat(descriptor).st_ino)
        named.append((tmp_path / "file").exists())
        return 0

    monkeypatch.setattr(durable.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(durable.fcntl, "fcntl", asked)
    durable.write_whole(tmp_path / "file", "text")

    assert flushed == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]
    assert named == [False, True]


def test_what_a_crash_left_goes_with_the_file(tmp_path):
    path = tmp_path / "file"
    durable.write_whole(path, "text")
    (tmp_path / ".file.new").write_text("half")
    durable.remove(path)
    durable.remove(path)
    durable.remove(tmp_path / "none" / "file")

    assert list(tmp_path.iterdir()) == []


def write_often(path, text):
    for _ in range(60):
        durable.write_whole(path, text)


def test_two_writers_at_once_do_not_mix(tmp_path):
    """A reader sees one text or the other, whole, and both writers come to their end."""
    path, texts = tmp_path / "file", ["a" * 200_000, "b" * 90_000]
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_often, args=(path, text)) for text in texts]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_text())
    for writer in writers:
        writer.join()

    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= set(texts)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
