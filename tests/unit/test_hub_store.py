"""What is on disk: only whole models are listed, and a stop at any moment leaves no half one."""

import errno
import json
import multiprocessing
import os
from pathlib import Path

import filelock
import pytest

from r1mac import durable
from r1mac.errors import BadCheckpoint, DiskFull, NotWritable, R1MacError, UnknownModel
from r1mac.hub.manifest import MANIFEST_NAME, describe, format_manifest, load_manifest, parse_manifest, write_manifest
from r1mac.hub.store import Store, building


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def make_model(store: Store, name: str, content: bytes = b"weights") -> Path:
    with store.building(name) as folder:
        (folder / "model.safetensors").write_bytes(content)
        write_manifest(folder, describe(folder, source="org/repo", revision="c" * 40, bits=4))
    return store.folder(name)


def fail_to_make(store: Store, name: str, *, keep_partial: bool) -> None:
    with store.building(name, keep_partial=keep_partial) as folder:
        (folder / "model.safetensors").write_bytes(b"half")
        raise ZeroDivisionError


def shown(store: Store) -> list[str]:
    return [model.name for model in store.list()]


def test_store_without_a_folder_is_empty(store):
    """A store whose folder does not exist has no models, and looking does not create it."""
    found = (store.list(), store.get("r1"), store.leftovers(), store.sweep_trash())

    assert found == ((), None, (), 0)
    assert not store.root.exists()


def test_built_model_is_listed_with_what_it_is(store):
    """A model that was built is listed with its size, source, revision, bits and files."""
    make_model(store, "org/repo", b"1234567")

    model = store.get("org/repo")
    assert model == store.list()[0]
    assert (model.name, model.path) == ("org--repo", store.root / "org--repo")
    assert (model.manifest.source, model.manifest.revision, model.manifest.bits) == ("org/repo", "c" * 40, 4)
    assert [(file.name, file.size_bytes) for file in model.manifest.files] == [("model.safetensors", 7)]
    assert model.size_bytes == 7 + (model.path / MANIFEST_NAME).stat().st_size
    assert model.missing_files() == ()


@pytest.mark.parametrize("manifest", [None, "", "{", "[]", "{}", '{"format": 2}', "[" * 100_000, "\x00"])
def test_folder_without_a_proper_manifest_is_no_model(store, manifest):
    """A folder counts as a model only if its manifest is there and can be read."""
    folder = store.root / "r1"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    if manifest is not None:
        (folder / MANIFEST_NAME).write_text(manifest)

    assert (store.list(), store.get("r1")) == ((), None)


def test_missing_or_shortened_file_is_named(store):
    """A stored model can say which of its files are gone or cut."""
    folder = make_model(store, "r1")
    (folder / "model.safetensors").write_bytes(b"w")

    assert store.get("r1").missing_files() == ("model.safetensors",)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../evil",
        "a/../b",
        "/etc",
        ".hidden",
        "-rf",
        "a/-b",
        "a/.b",
        "a/b/c",
        "a\\b",
        "a b",
        "ä",
        "a\n",
        "x" * 201,
    ],
)
def test_unsafe_name_is_refused(store, name):
    """No name leads outside the store, hides its folder or looks like an option."""
    with pytest.raises(UnknownModel):
        store.folder(name)


@pytest.mark.parametrize("name", ["r1", "R1-70b_4bit.v2", "org/repo", "0", "a..b"])
def test_name_is_a_folder_directly_below_the_root(store, name):
    """Every accepted name is one folder directly below the root."""
    assert store.folder(name).parent == store.root


def test_failed_build_leaves_nothing(store):
    """An exception while a model is made leaves nothing of it."""
    with pytest.raises(ZeroDivisionError):
        fail_to_make(store, "r1", keep_partial=False)

    assert [path.name for path in store.root.iterdir()] == []


def test_kept_partial_is_there_the_next_time(store):
    """A download that failed finds its bytes again, and is not listed until it is whole."""
    with pytest.raises(ZeroDivisionError):
        fail_to_make(store, "r1", keep_partial=True)
    before = shown(store)
    with store.building("r1", keep_partial=True) as folder:
        kept = (folder / "model.safetensors").read_bytes()
        write_manifest(folder, describe(folder, source="s", revision=None, bits=None))

    assert (before, kept, shown(store)) == ([], b"half", ["r1"])


def test_manifest_of_an_interrupted_run_does_not_count(store):
    """A manifest that a killed process left in its hidden folder is dropped before the folder changes."""
    partial = store.root / ".r1.partial"
    partial.mkdir(parents=True)
    write_manifest(partial, describe(partial, source="s", revision=None, bits=None))
    with store.building("r1"):
        pass

    assert shown(store) == []


def test_new_model_replaces_the_old_one(store):
    """Building a name again replaces the model, and leaves no copy of the old one."""
    make_model(store, "r1", b"old")
    make_model(store, "r1", b"new!")

    assert (store.folder("r1") / "model.safetensors").read_bytes() == b"new!"
    assert sorted(path.name for path in store.root.iterdir()) == ["r1"]


def test_old_model_stays_while_the_new_one_fails(store):
    """A failed rebuild leaves the model that was there."""
    make_model(store, "r1", b"old")
    with pytest.raises(ZeroDivisionError):
        fail_to_make(store, "r1", keep_partial=False)

    assert (store.folder("r1") / "model.safetensors").read_bytes() == b"old"


def test_block_that_finds_the_model_made_leaves_it(store):
    """A block that writes no manifest changes nothing and leaves no hidden folder."""
    make_model(store, "r1", b"made")
    with store.building("r1"):
        pass

    assert (shown(store), store.leftovers()) == (["r1"], ())


def test_remove_frees_the_model_and_its_partial(store):
    """Removing a model deletes it and what an unfinished download left, and says how much that was."""
    folder = make_model(store, "r1", b"w" * 1000)
    size_bytes = store.get("r1").size_bytes
    (store.root / ".r1.partial").mkdir()
    (store.root / ".r1.partial" / "x").write_bytes(b"h" * 24)
    make_model(store, "r2")

    assert store.remove("r1") == size_bytes + 24
    assert (folder.exists(), shown(store), store.leftovers()) == (False, ["r2"], ())


@pytest.mark.parametrize("name", ["absent", "plain-folder"])
def test_remove_touches_only_models(store, name):
    """What is not a model of this store cannot be removed through it."""
    (store.root / "plain-folder").mkdir(parents=True)
    (store.root / "plain-folder" / "thesis.txt").write_text("years of work")

    with pytest.raises(UnknownModel):
        store.remove(name)
    assert (store.root / "plain-folder" / "thesis.txt").exists()


def test_remove_refuses_a_link(store, tmp_path):
    """A link in the store is not followed to delete what it points to."""
    outside = make_model(Store(tmp_path / "elsewhere"), "r1")
    store.root.mkdir()
    (store.root / "r1").symlink_to(outside)

    with pytest.raises(NotWritable, match="link"):
        store.remove("r1")
    assert (outside / "model.safetensors").exists()


def test_removing_what_another_process_makes_is_refused(store):
    """A model that is being made cannot be removed."""
    make_model(store, "r1")

    with filelock.FileLock(store.root / ".r1.lock"), pytest.raises(NotWritable, match="at work"):
        store.remove("r1")
    assert shown(store) == ["r1"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_place_that_takes_no_files_is_said_at_once():
    """Where no lock can be made, nothing waits for it."""
    with pytest.raises(NotWritable, match="no file can be made in /proc"), building(Path("/proc/r1")):
        pass


def test_sweep_clears_only_trash(store):
    """Sweeping deletes what killed deletions left: no download that can go on, nor anything else."""
    make_model(store, "r1")
    for name in (".a.partial", ".b.trash-0a1b2c3d", ".busy.partial", ".other", "plain"):
        (store.root / name).mkdir()
        (store.root / name / "x").write_bytes(b"12345")
    with filelock.FileLock(store.root / ".busy.lock"):
        found = [(leftover.name, leftover.kind, leftover.size_bytes) for leftover in store.leftovers()]
        freed_bytes = store.sweep_trash()

    left = {path.name for path in store.root.iterdir() if path.is_dir()}
    assert found == [("a", "partial", 5), ("b", "trash", 5)]
    assert (freed_bytes, left) == (5, {"r1", ".a.partial", ".busy.partial", ".other", "plain"})


def test_second_process_waits_and_finds_the_model(store):
    """Of two processes that make the same model one works; the other says that it waits, then finds it made."""
    context = multiprocessing.get_context("spawn")
    inside, waiting, results = context.Event(), context.Event(), context.Queue()
    first = context.Process(target=_build_until_waited_for, args=(store.root, inside, waiting))
    second = context.Process(target=_build_after_waiting, args=(store.root, waiting, results))
    first.start()
    assert inside.wait(30)
    second.start()
    waited, found = results.get(timeout=30)
    for process in (first, second):
        process.join(30)

    assert (waited, found) == (["r1"], True)
    assert (store.folder("r1") / "model.safetensors").read_bytes() == b"from the first"


def test_wait_can_be_bounded(store):
    """Whoever will not wait is told who holds the model."""
    store.root.mkdir()
    waited = []

    with (
        filelock.FileLock(store.root / ".r1.lock"),
        pytest.raises(NotWritable, match="r1"),
        store.building("r1", on_wait=waited.append, wait_seconds=0.1),
    ):
        pass
    assert waited == ["r1"]


def test_full_disk_is_said_so(store, monkeypatch):
    """A manifest for which there is no room is DiskFull, and no model appears."""

    def no_room(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "to_disk", no_room)
    with pytest.raises(DiskFull):
        make_model(store, "r1")

    assert shown(store) == []


def test_manifest_survives_its_text(tmp_path):
    """What is written as a manifest is read back as the same."""
    (tmp_path / "a.safetensors").write_bytes(b"123")
    (tmp_path / ".hidden").write_bytes(b"123")
    manifest = describe(tmp_path, source="org/repö", revision=None, bits=None)
    write_manifest(tmp_path, manifest)

    assert parse_manifest(format_manifest(manifest)) == manifest == load_manifest(tmp_path)
    assert [file.name for file in manifest.files] == ["a.safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        {"bits": "4"},
        {"bits": True},
        {"source": None},
        {"files": []},
        {"files": {"a": -1}},
        {"files": {"a": "1"}},
        {"format": 9},
    ],
)
def test_wrong_manifest_is_refused(tmp_path, change):
    """A manifest with a field of the wrong type is refused, not guessed at."""
    data = json.loads(format_manifest(describe(tmp_path, source="s", revision=None, bits=4)))

    with pytest.raises(BadCheckpoint):
        parse_manifest(json.dumps(data | change))


def _build_until_waited_for(root, inside, waiting):
    with Store(root).building("r1") as folder:
        inside.set()
        waiting.wait(30)
        (folder / "model.safetensors").write_bytes(b"from the first")
        write_manifest(folder, describe(folder, source="s", revision=None, bits=None))


def _build_after_waiting(root, waiting, results):
    waited = []

    def on_wait(name):
        waited.append(name)
        waiting.set()

    try:
        with Store(root).building("r1", on_wait=on_wait, wait_seconds=20):
            found = Store(root).get("r1") is not None
    except R1MacError as error:
        found = error.problem
    results.put((waited, found))
