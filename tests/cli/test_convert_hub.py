"""Conversions of Hub repositories: real processes, real HTTP, little room on the disk."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, ROOT
from tests.hub_checkpoints import MOE, write_moe_repository
from tests.hub_stand_in import Fault

REPO = "org/moe"
OPTIONS = ("--bits", "4", "--max-shard", "2mb", "--no-smoke")
# Other moments to kill at: `for n in $(seq 20); do R1MAC_SEED=$n pytest tests/cli/test_convert_hub.py -k killed; done`
SEED = int(os.environ.get("R1MAC_SEED", "4"))


@pytest.fixture(scope="module", name="written")
def _written(tmp_path_factory):
    """Return the files of the repository, which every test has a copy of."""
    folder = tmp_path_factory.mktemp("written") / "moe"
    return write_moe_repository(folder, file_count=16, config={**MOE, "num_hidden_layers": 3})


@pytest.fixture(name="repository")
def _repository(hub, written):
    return Path(shutil.copytree(written, hub.folder / REPO))


@pytest.fixture(name="environment")
def _environment(environment, tmp_path):
    return {**environment, "R1MAC_HOME": str(tmp_path / "home"), "HF_HUB_DOWNLOAD_TIMEOUT": "5"}


@pytest.fixture(scope="module", name="expected")
def _expected(written, tmp_path_factory):
    """Return the model that a conversion of the same files on this disk makes."""
    folder = tmp_path_factory.mktemp("expected")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "R1MAC_HOME": str(folder / "home")}
    command = [*COMMAND, "convert", str(written), "-o", str(folder / "expected"), *OPTIONS]
    subprocess.run(command, env=environment, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return model_of(folder / "expected")


def model_of(folder):
    """Return the bytes of a model's files but for those that say where it came from and when."""
    provenance = {"r1mac.json", "r1mac-conversion.json", "README.md", "quality.json"}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in provenance}


def used_bytes(folder):
    """Return what the files below *folder* take on the disk; what is renamed meanwhile counts once."""
    sizes = {}
    for root, _, names in os.walk(folder):  # unlike Path.rglob it bears folders that vanish meanwhile
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                stat = Path(root, name).lstat()
                sizes[stat.st_ino] = stat.st_blocks * 512
    return sum(sizes.values())


class Watch:
    """Measures the most that a folder takes while the block runs."""

    def __init__(self, *folders):
        self.folders, self.peak_bytes, self._ended = folders, 0, threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _watch(self):
        while not self._ended.wait(0.002):
            self.peak_bytes = max(self.peak_bytes, sum(map(used_bytes, self.folders)))


def weights_of(repository):
    return {path.name: path.stat().st_size for path in repository.glob("*.safetensors")}


def served_of(hub):
    return sum(size for key, size in hub.served_bytes.items() if key.endswith(".safetensors"))


def test_disk_holds_the_result_and_three_files(hub, r1mac, repository, expected, tmp_path):
    """A repository is converted with the bytes of a local one; at no moment are more than three of its files here."""
    sizes = weights_of(repository)
    for name in sizes:
        hub.fault(f"{REPO}/{name}", Fault(bytes_per_s=8 * 10**6))
    work = tmp_path / "work"
    work.mkdir()
    with Watch(work, tmp_path / "home") as watch:
        done = r1mac("convert", REPO, "-o", str(work / "out"), *OPTIONS)

    assert done.returncode == 0, done.stderr
    assert model_of(work / "out") == expected
    assert len(sizes) >= 16
    room_bytes = used_bytes(work) + 3 * max(sizes.values())
    assert used_bytes(work) < watch.peak_bytes <= room_bytes < sum(sizes.values())
    assert list((tmp_path / "home" / "models").iterdir()) == []
    assert "on the disk that takes" in done.stderr


def test_result_says_where_it_came_from(hub, r1mac, repository, tmp_path):
    """The manifest has repository and commit, the card these, the licence and the recipe; no path of this computer."""
    r1mac("convert", REPO, "-o", str(tmp_path / "out"), *OPTIONS)

    card = (tmp_path / "out" / "README.md").read_text()
    manifest = json.loads((tmp_path / "out" / "r1mac.json").read_text())
    assert (manifest["source"], manifest["revision"]) == (REPO, hub.commit(REPO))
    assert manifest["bits"] == 4
    assert "license: mit" in card
    assert f"base_model: {REPO}" in card
    assert hub.commit(REPO) in card
    assert "bits = 4" in card
    assert "# out\n" in card
    # The weights that it was made from are gone.
    assert "| perplexity |" in card
    assert "divergence" not in card
    assert str(tmp_path) not in card


@pytest.fixture(name="begin")
def _begin(hub, environment, repository, tmp_path):
    """Return a function that starts the conversion and returns it when so much of the weights has been sent."""
    for name in weights_of(repository):
        hub.fault(f"{REPO}/{name}", Fault(bytes_per_s=10 * 10**6))

    def begin(share):
        child = subprocess.Popen(
            [*COMMAND, "convert", REPO, "-o", str(tmp_path / "out"), *OPTIONS],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wanted_bytes = served_of(hub) + share * sum(weights_of(repository).values())
        deadline = time.monotonic() + 60
        while child.poll() is None and served_of(hub) < wanted_bytes:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return child

    return begin


def settled_of(hub, source, repository, *, runs):
    """Return the weight files that have come whole: those in the folder *source*, and those used up before them."""
    # A run asks for the header of a file first, which is this much at most.
    begun = {name for name in weights_of(repository) if hub.served_bytes[f"{REPO}/{name}"] > runs * 2**18}
    return begun - {name for name in begun if list(source.glob(f".{name}.*.part"))}


def test_killed_conversion_goes_on(hub, begin, r1mac, repository, expected, tmp_path):
    """Killed at random moments, the same command ends in the same result, and nothing that had come comes again."""
    moments = random.Random(SEED)
    source = tmp_path / "home" / "models" / ".org--moe.partial"
    settled: list[tuple[int, set[str]]] = []
    for number in range(5):
        child = begin(moments.uniform(0.06, 0.14))
        time.sleep(moments.uniform(0, 0.1))
        assert child.poll() is None
        child.kill()
        child.communicate()
        settled.append((len(hub.requests), settled_of(hub, source, repository, runs=number + 1)))
    done = r1mac("convert", REPO, "-o", str(tmp_path / "out"), *OPTIONS)

    assert done.returncode == 0, done.stderr
    assert model_of(tmp_path / "out") == expected
    assert settled[-1][1]
    for mark, names in settled:
        asked = {request.rpartition("/")[2] for request in hub.requests[mark:]}
        assert not names & asked


def test_cut_network_keeps_what_came(hub, begin, r1mac, repository, expected, tmp_path):
    """A file that the Hub stops sending ends the conversion with one sentence; the next run goes on from there."""
    sizes = weights_of(repository)
    last = max(sizes)
    child = begin(0.5)
    hub.fault(f"{REPO}/{last}", Fault(status=404, error_code="EntryNotFound"))
    _, stderr = child.communicate(timeout=60)
    before = served_of(hub)
    hub.fault(f"{REPO}/{last}", None)
    done = r1mac("convert", REPO, "-o", str(tmp_path / "out"), *OPTIONS)

    assert child.returncode == 6
    assert last in stderr
    assert "goes on" in stderr
    assert "going on: " in done.stderr
    assert model_of(tmp_path / "out") == expected
    # That one, and what of the two before it was still on its way.
    assert served_of(hub) - before <= 3 * max(sizes.values()) < sum(sizes.values()) / 4


def test_kept_source_is_a_model_of_its_own(hub, r1mac, repository, expected, tmp_path):
    """With --keep-source the weights stay in the store, and another conversion fetches nothing."""
    first = r1mac("convert", REPO, "-o", str(tmp_path / "out"), "--keep-source", *OPTIONS)
    before = served_of(hub)
    again = r1mac("convert", REPO, "-o", str(tmp_path / "other"), *OPTIONS)

    stored = tmp_path / "home" / "models" / "org--moe"
    assert (first.returncode, again.returncode) == (0, 0)
    assert {path.name for path in stored.glob("*.safetensors")} == set(weights_of(repository))
    assert served_of(hub) == before
    assert model_of(tmp_path / "out") == model_of(tmp_path / "other") == expected
    measured = json.loads((tmp_path / "out" / "quality.json").read_text())["divergence"]
    assert (measured["reference"], measured["revision"]) == (REPO, hub.commit(REPO))


def test_result_without_a_folder_is_in_the_store(hub, r1mac, repository):
    """Without -o the model is in the store, where run and pull find it and fetch nothing."""
    made = r1mac("convert", REPO, *OPTIONS)
    hub.fault(REPO, Fault(status=500))
    pulled = r1mac("pull", REPO, "--bits", "4")

    assert made.returncode == 0, made.stderr
    assert pulled.returncode == 0, pulled.stderr
    assert "org--moe-4bit" in pulled.stderr


def test_pull_converts_in_little_room(hub, r1mac, repository, tmp_path):
    """A model that is converted on its first use leaves nothing of its source behind either."""
    with Watch(tmp_path / "home") as watch:
        done = r1mac("pull", REPO, "--bits", "4")

    models = tmp_path / "home" / "models"
    assert done.returncode == 0, done.stderr
    assert [path.name for path in models.iterdir()] == ["org--moe-4bit"]
    assert watch.peak_bytes <= used_bytes(models) + 3 * max(weights_of(repository).values())


def test_changed_repository_is_converted_anew(begin, r1mac, repository, tmp_path):
    """When the repository changes between two runs, nothing of the old one is mixed into the result."""
    child = begin(0.6)
    child.kill()
    child.communicate()
    changed = repository / sorted(weights_of(repository))[3]
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    done = r1mac("convert", REPO, "-o", str(tmp_path / "out"), *OPTIONS)
    r1mac("convert", str(repository), "-o", str(tmp_path / "fresh"), *OPTIONS)

    assert done.returncode == 0, done.stderr
    assert "the source changed" in done.stderr
    assert model_of(tmp_path / "out") == model_of(tmp_path / "fresh")


def test_pushed_conversion_is_verified_first(hub, r1mac, environment, repository, tmp_path):
    """A converted model goes to the Hub without the record of this computer; a flipped byte keeps it here."""
    login = {**environment, "HF_TOKEN": "hf_write", "HF_HUB_DISABLE_XET": "1"}
    out = tmp_path / "out"
    r1mac("convert", REPO, "-o", str(out), *OPTIONS)
    done = r1mac("push", "me/moe-4bit", str(out), "--yes", env=login)
    path = next(iter(sorted(out.glob("model-*.safetensors"))))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused = r1mac("push", "me/other", str(out), "--yes", env=login)

    pushed = {file.name for file in hub.files("me/moe-4bit")}
    assert done.returncode == 0, done.stderr
    assert pushed == {file.name for file in out.iterdir()} - {"r1mac.json", "r1mac-conversion.json"}
    assert refused.returncode == 7
    assert path.name in refused.stderr
    assert not Path(hub.folder / "me" / "other").exists()
