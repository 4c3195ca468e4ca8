"""Records that live as long as their processes: what a reader sees at any moment."""

import os
import time

import pytest

from r1mac.machine import process_records
from r1mac.machine.process_records import MAX_BYTES, FoundRecord, ProcessRecord, read_record


@pytest.fixture(name="record")
def _record(tmp_path):
    record = ProcessRecord(tmp_path, mode=0o644, lasting=True)
    yield record
    record.remove()


def test_a_living_process_has_a_living_record(record):
    record.write(b"one")
    alive = read_record(record.path)
    record.write(b"two")

    assert alive == FoundRecord(content=b"one", living=True, user_id=os.getuid())
    assert read_record(record.path) == FoundRecord(content=b"two", living=True, user_id=os.getuid())
    assert record.path.stat().st_mode & 0o777 == 0o644


def test_an_unlocked_record_is_of_a_process_that_is_gone(tmp_path):
    path = tmp_path / "1-x.json"
    path.write_bytes(b"left")

    assert read_record(path) == FoundRecord(content=b"left", living=False, user_id=os.getuid())


def test_a_record_that_is_replaced_while_it_is_opened_still_lives(record, monkeypatch):
    """Between a reader's opening and its look at the lock the writer may have gone on to another file."""
    record.write(b"load")
    fstat, news = os.fstat, [b"run"]

    def meanwhile(descriptor):
        status = fstat(descriptor)
        if news:
            record.write(news.pop())
        return status

    monkeypatch.setattr(process_records.os, "fstat", meanwhile)

    assert read_record(record.path) == FoundRecord(content=b"run", living=True, user_id=os.getuid())


def test_a_record_that_goes_while_it_is_opened_is_none(record, monkeypatch):
    """A run that ends in order at that moment is not one that was killed."""
    record.write(b"run")
    fstat = os.fstat

    def meanwhile(descriptor):
        status = fstat(descriptor)
        record.remove()
        return status

    monkeypatch.setattr(process_records.os, "fstat", meanwhile)

    assert read_record(record.path) is None


def test_a_record_is_never_too_long_to_be_read(record):
    """What is written can be read back whole, and what cannot is not written."""
    record.write(b"x" * MAX_BYTES)
    found = read_record(record.path)
    with pytest.raises(OSError, match="too long"):
        record.write(b"x" * (MAX_BYTES + 1))

    assert found is not None
    assert len(found.content) == MAX_BYTES
    assert read_record(record.path) == found
    assert [path.name for path in record.path.parent.iterdir()] == [record.path.name]


def test_what_is_no_plain_file_is_no_record(tmp_path):
    """A pipe is not waited for, and a link not followed."""
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "long.json").write_bytes(b"9" * (MAX_BYTES + 1))
    began = time.monotonic()

    assert [read_record(path) for path in tmp_path.iterdir()] == [None] * 4
    assert time.monotonic() - began < 5
