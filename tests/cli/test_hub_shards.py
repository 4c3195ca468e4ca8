"""Weight files that come one after another over real HTTP and go when they are used."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import mlx.core as mx
import pytest

from tests.checkpoints import CONFIGS, write_checkpoint
from tests.hub_stand_in import Fault, StandIn

REPO = "org/model"
SHARDS = [f"model-{index:05}-of-00008.safetensors" for index in range(1, 9)]

# The library reads HF_ENDPOINT when it is imported, so every download has a process of its own.
CHILD = """
import json, sys
from pathlib import Path
from r1mac.errors import R1MacError
from r1mac.formats.folder import file_identities, read_tensors
from r1mac.hub import download, remote, shards

options = json.loads(sys.argv[1])
remote.FIRST_WAIT_SECONDS, remote.ATTEMPT_COUNT = 0.05, 3
into = Path(options["into"])

def say(**words):
    print(json.dumps(words), flush=True)

try:
    listing = download.list_files("org/model")
    files = download.select_files(listing)
    list(shards.fetch_outline(listing, files, into))
    tensors = read_tensors(into)
    say(kind="outline", tensors={name: entry.shape for name, (_, entry) in tensors.items()},
        names=sorted(path.name for path in into.iterdir()), digests=file_identities({path for path, _ in tensors.values()}))
    weights = shards.weight_files(files)
    with shards.ShardStream(listing, weights, into) as stream:
        stream.most_bytes = options["most_bytes"]
        for file in weights[: options.get("count")]:
            for _ in stream.ready([file.name]):
                pass
            say(kind="ready", name=file.name, is_right=(into / file.name).stat().st_size == file.size_bytes)
            if not options.get("keeps"):
                stream.release(file.name)
except R1MacError as error:
    say(kind="error", problem=error.problem, hint=error.hint)
    sys.exit(error.exit_code)
"""


@pytest.fixture(name="repository")
def _repository(tmp_path):
    return write_checkpoint(tmp_path / "hub" / REPO, CONFIGS["llama"], shard_count=len(SHARDS))


@pytest.fixture(name="hub")
def _hub(repository, tmp_path):
    with StandIn(tmp_path / "hub") as stand_in:
        yield stand_in


def stream(hub, into, **options):
    """Run the child to its end; return its exit code, what it said, and the most bytes that *into* had."""
    peak, ended = [0], threading.Event()

    def watch():
        while not ended.wait(0.002):
            peak[0] = max(peak[0], disk_bytes(into))

    watcher = threading.Thread(target=watch)
    watcher.start()
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps({"into": str(into), **options})],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DOWNLOAD_TIMEOUT": "5"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ended.set()
    watcher.join()
    assert child.stderr == ""
    return child.returncode, [json.loads(line) for line in child.stdout.splitlines()], peak[0]


def disk_bytes(folder):
    """Return what weights take in *folder*; a file that is renamed meanwhile counts once."""
    sizes = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix in {".safetensors", ".part"}:
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                sizes[stat.st_ino] = stat.st_size
    return sum(sizes.values())


def test_outline_is_the_repository_without_its_weights(hub, repository, tmp_path):
    """Headers come by themselves: every tensor is known by name and shape, and hardly a byte of weights was sent."""
    code, said, _ = stream(hub, tmp_path / "into", most_bytes=0, count=0)

    whole = {path.name: mx.load(str(path)) for path in repository.glob("*.safetensors")}
    assert code == 0
    assert said[0]["tensors"] == {
        name: list(values.shape) for tensors in whole.values() for name, values in tensors.items()
    }
    assert set(said[0]["digests"]) == set(SHARDS)
    assert not set(SHARDS) & set(said[0]["names"])
    sizes = {name: (repository / name).stat().st_size for name in SHARDS}
    lengths = {name: int.from_bytes((repository / name).read_bytes()[:8], "little") + 8 for name in SHARDS}
    assert sum(lengths.values()) < sum(sizes.values()) / 10
    assert all(hub.served_bytes[f"{REPO}/{name}"] <= max(2**18, lengths[name]) for name in SHARDS)


@pytest.mark.parametrize("most", [0, 3])
def test_files_come_and_go_in_little_room(hub, repository, tmp_path, most):
    """Every file comes whole once, and what lies on the disk is never more than the room that was given."""
    largest = max((repository / name).stat().st_size for name in SHARDS)
    for name in SHARDS:
        hub.fault(f"{REPO}/{name}", Fault(bytes_per_s=400_000))
    code, said, peak = stream(hub, tmp_path / "into", most_bytes=most * largest)

    assert code == 0
    assert [(words["name"], words["is_right"]) for words in said[1:]] == [(name, True) for name in SHARDS]
    assert 0 < peak <= max(most, 1) * largest + 2**14
    assert disk_bytes(tmp_path / "into") == 0


def test_second_run_goes_on_with_what_came(hub, repository, tmp_path):
    """What a cut-off run left is not fetched again: neither headers, nor whole files, nor the beginning of one."""
    into = tmp_path / "into"
    first = stream(hub, into, most_bytes=0, count=2, keeps=True)
    hub.fault(f"{REPO}/{SHARDS[2]}", Fault(cut_after_bytes=20_000))
    cut = stream(hub, into, most_bytes=0, count=3, keeps=True)
    before = dict(hub.served_bytes)
    hub.fault(f"{REPO}/{SHARDS[2]}", None)
    code, _, _ = stream(hub, into, most_bytes=0, keeps=True)

    again = {name: hub.served_bytes[f"{REPO}/{name}"] - before.get(f"{REPO}/{name}", 0) for name in SHARDS}
    assert (first[0], cut[0], code) == (0, 6, 0)
    assert SHARDS[2] in cut[1][-1]["problem"]
    assert again[SHARDS[0]] == again[SHARDS[1]] == 0
    assert again[SHARDS[2]] <= (repository / SHARDS[2]).stat().st_size - 20_000
    assert all((into / name).read_bytes() == (repository / name).read_bytes() for name in SHARDS)


def test_changed_repository_is_begun_anew(hub, repository, tmp_path):
    """Nothing of an older revision is taken for the new one: not its headers, not its files."""
    into = tmp_path / "into"
    stream(hub, into, most_bytes=0, count=2, keeps=True)
    write_checkpoint(repository, {**CONFIGS["llama"], "intermediate_size": 512}, shard_count=len(SHARDS))
    code, said, _ = stream(hub, into, most_bytes=0, count=2, keeps=True)

    assert code == 0
    assert said[0]["tensors"]["model.layers.0.mlp.up_proj.weight"] == [512, 128]
    assert all((into / name).read_bytes() == (repository / name).read_bytes() for name in SHARDS[:2])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: (2**60).to_bytes(8, "little") + content[8:], "its header would be"),
        (lambda content: content[:-1], "its header describes"),
        (lambda content: content[:8] + b"x" + content[9:], "not valid JSON"),
    ],
    ids=["length", "truncated", "json"],
)
def test_damaged_file_is_known_from_its_header(hub, repository, tmp_path, damage, words):
    """A file whose header is not one, or is another file's, is refused before any weights are fetched."""
    path = repository / SHARDS[4]
    path.write_bytes(damage(path.read_bytes()))
    code, said, _ = stream(hub, tmp_path / "into", most_bytes=0)

    assert code == 7
    assert SHARDS[4] in said[-1]["problem"]
    assert words in said[-1]["problem"]
    assert not list((tmp_path / "into").glob("*.safetensors"))
