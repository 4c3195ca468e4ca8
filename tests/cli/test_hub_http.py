"""Downloads over real HTTP in real processes, from a stand-in that can be cut, slow, silent or wrong."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1mac.hub.store import Store
from tests.hub_stand_in import Fault, StandIn

REPO = "org/tiny"
WEIGHTS = f"{REPO}/model.safetensors"
WEIGHT_BYTES = 2_000_000

# What `r1mac` does for a model, without its command line. The library reads HF_ENDPOINT when it is
# imported, so every download has a process of its own.
CHILD = """
import json, resource, sys
from pathlib import Path
from r1mac.errors import R1MacError
from r1mac.hub import download, remote
from r1mac.hub.manifest import describe, write_manifest
from r1mac.hub.store import Store

options = json.loads(sys.argv[1])
remote.FIRST_WAIT_SECONDS, remote.ATTEMPT_COUNT = 0.05, 3
if limit := options.get("file_limit"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

def say(**words):
    print(json.dumps(words), flush=True)

try:
    repo = options["repo"]
    listing = download.list_files(repo, options.get("revision"))
    files = download.select_files(listing)
    store = Store(Path(options["root"]))
    with store.building(repo, keep_partial=True, on_wait=lambda name: say(kind="waiting", name=name)) as folder:
        if store.get(repo) is None:
            free = options.get("free", 10**12)
            for event in download.fetch(listing, files, folder, free_disk_bytes=lambda path: free):
                say(kind=type(event).__name__, **{name: getattr(event, name) for name in event.__slots__})
            write_manifest(folder, describe(folder, source=repo, revision=listing.commit, bits=None))
except R1MacError as error:
    say(kind="error", problem=error.problem, hint=error.hint)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""

CONFIG_CHILD = """
import json, sys
from r1mac.errors import R1MacError
from r1mac.hub.download import fetch_config

for name in sys.argv[1:]:
    try:
        print(json.dumps(fetch_config(f"org/{name}")))
    except R1MacError as error:
        print(error.exit_code)
"""


@pytest.fixture
def repositories(tmp_path):
    folder = tmp_path / "repositories"
    (folder / REPO).mkdir(parents=True)
    (folder / REPO / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / REPO / "tokenizer.json").write_text("{}")
    (folder / REPO / "README.md").touch()
    (folder / REPO / "modeling.py").write_text("raise SystemExit")
    (folder / WEIGHTS).write_bytes(random.Random(0).randbytes(WEIGHT_BYTES))
    return folder


@pytest.fixture
def hub(repositories):
    with StandIn(repositories) as stand_in:
        yield stand_in


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models")


def start(hub_url, store, *, environment=None, **options):
    """Start the child; its words come from ``stdout`` a line each."""
    words = json.dumps({"repo": REPO, "root": str(store.root), **options})
    variables = {**os.environ, "HF_ENDPOINT": hub_url, "HF_HUB_DOWNLOAD_TIMEOUT": "5", **(environment or {})}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, words],
        cwd=Path(__file__).parents[2],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child):
    """Return exit code, what was said, and what went to stderr."""
    stdout, stderr = child.communicate(timeout=60)
    return child.returncode, [json.loads(line) for line in stdout.splitlines()], stderr


def download(hub, store, **options):
    return finish(start(hub.url, store, **options))


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_right(store, repositories):
    """Whether the stored model has exactly the wanted files with the right bytes."""
    model = store.get(REPO)
    names = {"config.json", "tokenizer.json", "README.md", "model.safetensors"}
    return (
        model is not None
        and {path.name for path in model.path.iterdir()} == {*names, "r1mac.json"}
        and all((model.path / name).read_bytes() == (repositories / REPO / name).read_bytes() for name in names)
    )


def refusal(outcome):
    """Return exit code and the sentence of a failed download; it must be one line, and all there is."""
    code, said, stderr = outcome
    assert stderr == ""
    assert "\n" not in said[-1]["problem"]
    return code, said[-1]["problem"], said[-1]["hint"]


def test_download_brings_the_right_bytes_and_nothing_else(hub, store, repositories):
    """A download stores exactly the files that r1mac needs, silently, with progress that ends at the total."""
    code, said, stderr = download(hub, store)

    progress = [words["done_bytes"] for words in said if words["kind"] == "DownloadProgress"]
    verified = [words["done_bytes"] for words in said if words["kind"] == "VerifyProgress"]
    assert (code, stderr) == (0, "")
    assert is_right(store, repositories)
    assert progress == sorted(progress)
    assert progress[-1] == verified[-1] == said[-1]["total_bytes"] == WEIGHT_BYTES + 23 + 2
    assert sum(hub.served_bytes.values()) == WEIGHT_BYTES + 23 + 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut_after_bytes=700_000, times=2),
        Fault(cut_after_bytes=0, times=2),
        Fault(status=500, times=2),
        Fault(status=429, times=1),
        Fault(silent=True, times=1),
        Fault(wrong_bytes=True, times=1),
    ],
    ids=["cut", "cut-at-once", "500", "429", "silent", "wrong-bytes"],
)
def test_passing_trouble_heals_itself(hub, store, repositories, fault):
    """A file that fails a few times and then comes right is stored right, and the person is told of each retry."""
    times, is_wrong = fault.times, fault.wrong_bytes
    hub.fault(WEIGHTS, fault)
    code, said, _ = download(hub, store, environment={"HF_HUB_DOWNLOAD_TIMEOUT": "1"})

    assert code == 0
    assert is_right(store, repositories)
    assert [words["name"] for words in said if words["kind"] == "Retrying"] == ["model.safetensors"] * times
    assert hub.served_bytes[WEIGHTS] <= WEIGHT_BYTES * (2 if is_wrong else 1.01)


@pytest.mark.parametrize("ignore_range", [False, True])
def test_second_run_goes_on_where_a_cut_one_stopped(hub, store, repositories, ignore_range):
    """After a connection was lost too often, the same command fetches the rest, and needs room only for that.

    A server that knows no Range makes it start over.
    """
    hub.fault(WEIGHTS, Fault(cut_after_bytes=200_000))
    first = refusal(download(hub, store))
    listed = store.list()
    before = hub.served_bytes[WEIGHTS]
    hub.fault(WEIGHTS, Fault(ignore_range=ignore_range))
    code, _, _ = download(hub, store, free=WEIGHT_BYTES - 300_000)

    again = hub.served_bytes[WEIGHTS] - before
    assert first[0] == 6
    assert "model.safetensors" in first[1]
    assert "goes on where it stopped" in first[2]
    assert (listed, code) == ((), 0)
    assert is_right(store, repositories)
    assert again == WEIGHT_BYTES if ignore_range else before + again <= WEIGHT_BYTES * 1.01


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["kill", "ctrl-c"])
def test_stopped_download_is_prompt_and_goes_on(hub, store, repositories, number, code):
    """A download that is killed or interrupted ends at once, lists nothing, and the next run fetches only the rest."""
    # Slow enough for the signal to come in the middle on a busy machine too: six seconds in all.
    hub.fault(WEIGHTS, Fault(bytes_per_s=WEIGHT_BYTES // 6))
    child = start(hub.url, store)
    wait_until(lambda: hub.served_bytes[WEIGHTS] > 0.2 * WEIGHT_BYTES)
    child.send_signal(number)
    sent = time.monotonic()
    stopped = finish(child)
    seconds = time.monotonic() - sent
    listed = store.list()
    hub.fault(WEIGHTS, None)
    again = download(hub, store)

    assert (stopped[0], stopped[2], listed, again[0]) == (code, "", (), 0)
    # Whoever waited for the request's time-out would need longer.
    assert seconds < 20
    assert is_right(store, repositories)
    assert hub.served_bytes[WEIGHTS] < 1.2 * WEIGHT_BYTES


def test_changed_repository_is_not_mixed_with_the_old_one(hub, store, repositories):
    """Bytes of an earlier revision are not gone on with when the file has changed meanwhile."""
    hub.fault(WEIGHTS, Fault(cut_after_bytes=200_000))
    download(hub, store)
    (repositories / WEIGHTS).write_bytes(random.Random(1).randbytes(WEIGHT_BYTES))
    hub.fault(WEIGHTS, None)
    code, said, _ = download(hub, store)

    assert code == 0
    assert is_right(store, repositories)
    assert not [words for words in said if words["kind"] == "Retrying"]


def test_file_that_is_always_damaged_is_refused(hub, store):
    """A file that arrives wrong twice ends the download, names both digests, and leaves nothing that looks whole."""
    hub.fault(WEIGHTS, Fault(wrong_bytes=True))
    code, problem, _ = refusal(download(hub, store))

    left = [path.name for path in store.root.rglob("*") if "safetensors" in path.name]
    assert (code, store.list(), left) == (6, (), [])
    assert "model.safetensors" in problem
    assert len([word for word in problem.replace(",", "").split() if len(word) == 64]) == 2
    assert hub.served_bytes[WEIGHTS] == 2 * WEIGHT_BYTES


REFUSALS = [
    (REPO, Fault(status=404, error_code="RepoNotFound"), (3, "no repository org/tiny")),
    (REPO, Fault(status=401, error_code="GatedRepo"), (14, "gated")),
    (REPO, Fault(status=403), (14, "403")),
    (REPO, Fault(status=500), (6, "500")),
    (REPO, Fault(silent=True), (16, "no answer within 1 s")),
    (REPO, Fault(body="<html>Please log in to the hotel</html>"), (6, "not one of the Hub's")),
    (REPO, Fault(body='{"id": "org/tiny"}'), (6, "not one of the Hub's")),
    (REPO, Fault(more_names=("../evil",)), (7, "'../evil'")),
    (WEIGHTS, Fault(status=404, error_code="EntryNotFound"), (6, "model.safetensors")),
    (WEIGHTS, Fault(status=401, error_code="GatedRepo"), (14, "gated")),
    (WEIGHTS, Fault(status=503), (6, "503")),
    (WEIGHTS, Fault(silent=True), (6, "no answer within 1 s")),
    (WEIGHTS, Fault(bytes_per_s=100), (6, "bytes came in")),
]


@pytest.mark.parametrize(("key", "fault", "outcome"), REFUSALS)
def test_refusal_is_one_sentence_with_its_own_code(hub, store, key, fault, outcome):
    """Whatever the Hub refuses, garbles or leaves unanswered is one sentence, a hint and a code, in bounded time."""
    hub.fault(key, fault)
    started = time.monotonic()
    code, problem, hint = refusal(download(hub, store, environment={"HF_HUB_DOWNLOAD_TIMEOUT": "1"}))

    assert (code, store.list()) == (outcome[0], ())
    assert outcome[1] in problem
    assert hint
    assert time.monotonic() - started < 15
    if code == 14:
        assert "https://huggingface.co/org/tiny" in hint
        assert "hf auth login" in hint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repo": "org/absent"}, "org/absent"),
        ({"repo": "org/absent", "environment": {"HF_TOKEN": "hf_x"}}, "org/absent"),
        ({"repo": "not a repo"}, "'not a repo'"),
        ({"revision": "v9"}, "no such revision"),
    ],
)
def test_unknown_repository_is_unknown_model(hub, store, options, words):
    """A repository or revision that is not there is UnknownModel, with or without a login."""
    code, problem, _ = refusal(download(hub, store, **options))

    assert code == 3
    assert words in problem


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("http://127.0.0.1:9", "refused"),
        ("http://no-such-host.invalid", "no-such-host.invalid"),
        ("no-address", "no-address"),
    ],
)
def test_no_network_is_offline(store, endpoint, words):
    """Where nobody answers the download is Offline, at once, and says whom it asked."""
    code, problem, hint = refusal(finish(start(endpoint, store)))

    assert code == 16
    assert words in problem
    assert hint


def test_full_disk_is_known_before_the_first_byte(hub, store):
    """A download for which there is no room fetches no byte, and says what it needs and what there is."""
    code, problem, _ = refusal(download(hub, store, free=1_000_000))

    assert code == 11
    assert "2.0 MB" in problem
    assert "1.0 MB" in problem
    assert sum(hub.served_bytes.values()) == 0


def test_disk_that_fills_up_keeps_what_has_arrived(hub, store, repositories):
    """A disk that fills up during the download is DiskFull; with room again, the next run goes on."""
    code, problem, _ = refusal(download(hub, store, file_limit=1_000_000))
    again, _, _ = download(hub, store)

    assert (code, again) == (11, 0)
    assert "2.0 MB" in problem
    assert is_right(store, repositories)
    assert hub.served_bytes[WEIGHTS] < 1.9 * WEIGHT_BYTES


@pytest.mark.parametrize(("weights", "words"), [("pytorch_model.bin", "pickle"), ("model.gguf", "no safetensors")])
def test_repository_without_safetensors_is_refused(hub, store, repositories, weights, words):
    """A repository that has no safetensors is refused before anything of it is fetched."""
    (repositories / WEIGHTS).rename(repositories / REPO / weights)
    code, problem, hint = refusal(download(hub, store))

    assert code == 7
    assert words in problem
    assert "safetensors" in hint
    assert sum(hub.served_bytes.values()) == 0


def test_config_is_read_without_the_model(hub, repositories):
    """A repository's config.json is read alone; where it is absent, or is no JSON object, that is said."""
    configs = {"good": '{"layers": 2}', "text": "<html>", "array": "[1]", "binary": "\x00\xff", "deep": "[" * 100_000}
    for name, content in {**configs, "none": None}.items():
        (repositories / "org" / name).mkdir()
        if content is not None:
            (repositories / "org" / name / "config.json").write_text(content)
    names = ["good", "text", "array", "binary", "deep", "none", "absent"]
    result = subprocess.run(
        [sys.executable, "-c", CONFIG_CHILD, *names],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_ENDPOINT": hub.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    found = dict(zip(names, map(json.loads, result.stdout.splitlines()), strict=True))
    assert found["good"] == {"layers": 2}
    assert [found[name] for name in names[1:]] == [7, 7, 7, 7, 7, 3]


@pytest.fixture
def read_only_folder(tmp_path):
    if os.geteuid() == 0:
        yield Path("/sys")  # root may write everywhere but into the kernel's own folders
        return
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    yield folder
    folder.chmod(0o755)


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/sys").exists(), reason="root may write everywhere here")
def test_read_only_store_is_said_so(hub, read_only_folder):
    """A store that this user cannot write is NotWritable, before anything is fetched."""
    code, problem, hint = refusal(download(hub, Store(read_only_folder / "models")))

    assert code == 15
    assert str(read_only_folder) in problem
    assert "R1MAC_MODELS_DIR" in hint
    assert sum(hub.served_bytes.values()) == 0


def test_second_process_waits_for_the_first(hub, store, repositories):
    """Of two processes that want the same model, one fetches it and the other waits and uses it."""
    hub.fault(WEIGHTS, Fault(bytes_per_s=1_500_000))
    first = start(hub.url, store)
    wait_until(lambda: hub.served_bytes[WEIGHTS] > 0)
    second = download(hub, store)
    code, _, _ = finish(first)

    assert (code, second[0]) == (0, 0)
    assert second[1] == [{"kind": "waiting", "name": "org--tiny"}]
    assert is_right(store, repositories)
    assert hub.served_bytes[WEIGHTS] == WEIGHT_BYTES


def test_stand_in_runs_as_a_process(repositories, store):
    """The stand-in can be started as a program and steered by its command line."""
    program = Path(__file__).parents[1] / "hub_stand_in.py"
    fault = f'{REPO}={{"status": 403}}'
    server = subprocess.Popen(
        [sys.executable, program, repositories, "--fault", fault], stdout=subprocess.PIPE, text=True
    )
    with contextlib.ExitStack() as stack:
        stack.callback(server.wait, 10)
        stack.callback(server.kill)
        stack.enter_context(server.stdout)
        code, _, _ = refusal(finish(start(server.stdout.readline().strip(), store)))

    assert code == 14
