"""The room that a conversion of a Hub repository takes, said and checked before anything is fetched."""

import pytest

from r1mac.convert.schedule import steps
from r1mac.errors import DiskFull
from r1mac.hub.repository import RepoFile, RepoListing
from r1mac.prepare.files import Note
from r1mac.prepare.remote_source import HubFeed, room_for

GB = 10**9
NAMES = [f"model-{number:05}-of-00163.safetensors" for number in range(1, 164)]
FILES = tuple(RepoFile(name=name, size_bytes=4 * GB, sha256="ab" * 32, git_blob_id=None) for name in NAMES)
LISTING = RepoListing(repo="org/big", commit="cd" * 20, files=FILES)
STEPS = steps({index: frozenset({name}) for index, name in enumerate(NAMES)})
SIZES = {file.name: file.size_bytes for file in FILES}


class Disk:
    """As much of a machine as the feed asks for."""

    def __init__(self, free_bytes):
        self.free_bytes = free_bytes

    def free_disk_bytes(self, path):
        return self.free_bytes


def begin(tmp_path, free_bytes, *, result_bytes=200 * GB, order=STEPS):
    feed = HubFeed(LISTING, FILES, tmp_path, Disk(free_bytes))
    notes = list(feed.begin(order, result_bytes, tmp_path / "out"))
    feed.close()
    return notes


def test_room_is_said_before_anything_is_fetched(tmp_path):
    """With room enough the person learns what is fetched, and what result and source take: three files."""
    notes = begin(tmp_path, 1000 * GB)

    assert notes == [
        Note(
            "fetching 652.0 GB of org/big file by file; on the disk that takes 202.0 GB for the result and at most "
            "12.0 GB for source files at work"
        )
    ]


def test_fewer_files_at_a_time_where_room_is_short(tmp_path):
    """Where the result and one file have room, but not three, fewer are fetched ahead."""
    (note,) = begin(tmp_path, 207 * GB)

    assert "at most 5.0 GB for source files" in note.text


def test_full_disk_is_refused_with_its_numbers(tmp_path):
    """Where the result and one file of the source have no room, what is needed and what is there is said."""
    with pytest.raises(DiskFull, match=r"needs 206\.0 GB \(4\.0 GB of it for the source's files\).*has 205\.0 GB free"):
        begin(tmp_path, 205 * GB)

    assert list(tmp_path.iterdir()) == []


def test_what_came_already_is_not_asked_for_again(tmp_path):
    """A run that goes on needs room for what is missing, not for the beginning of a file that is there."""
    part = tmp_path / f".{NAMES[5]}.{FILES[5].digest[:16]}.part"
    with part.open("wb") as file:
        file.truncate(3 * GB)
    (note,) = begin(tmp_path, 204 * GB, order=STEPS[5:])

    assert "fetching 629.0 GB" in note.text


def test_nothing_left_to_fetch_needs_no_room(tmp_path):
    """A conversion whose weights are all used up fetches nothing, however full the disk is."""
    assert begin(tmp_path, 0, order=[]) == []


def test_scattered_repository_asks_for_what_it_really_takes():
    """Where every tensor's scale lies in the last file, all files have to be there at once, and that is counted."""
    order = steps({index: frozenset({name, NAMES[-1]}) for index, name in enumerate(NAMES)})
    room = room_for(order, SIZES, {}, missing_result_bytes=0)

    assert room.least_source_bytes == sum(SIZES.values())
    assert room_for(STEPS, SIZES, {}, missing_result_bytes=0).least_source_bytes == 4 * GB
