"""Which files of a repository are taken, and what a person is told: no network, no disk."""

import httpx2
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import hf_raise_for_status

from r1mac.errors import AccessDenied, BadCheckpoint, DiskFull, DownloadFailed, Offline, R1MacError, UnknownModel
from r1mac.hub import remote
from r1mac.hub.download import RepoFile, RepoListing, fetch, select_files


def listing_of(*names: str) -> RepoListing:
    files = tuple(RepoFile(name=name, size_bytes=1, sha256=None, git_blob_id="0" * 40) for name in names)
    return RepoListing(repo="org/repo", commit="c" * 40, files=files)


def selected(*names: str) -> list[str]:
    return [file.name for file in select_files(listing_of(*names))]


@pytest.mark.parametrize(
    "name",
    [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "chat_template.jinja",
        "LICENSE",
        "LICENSE-CODE",
        "README.md",
        "model.safetensors.index.json",
        "model-00001-of-00163.safetensors",
    ],
)
def test_needed_file_is_taken(name):
    """Configuration, tokenizer, template, licence, index and weights are taken."""
    assert name in selected("config.json", "model.safetensors", name)


@pytest.mark.parametrize(
    "name",
    [
        "modeling_deepseek.py",
        "configuration_deepseek.py",
        "pytorch_model.bin",
        "consolidated.00.pth",
        "model.pt",
        "weights.pkl",
        "tf_model.h5",
        "flax_model.msgpack",
        "model.onnx",
        "model.ckpt",
        "model.gguf",
        "original/model.safetensors",
        "onnx/config.json",
        "LICENSE.py",
        "LICENSE.BIN",
        ".gitattributes",
        "figures/benchmark.jpg",
        "r1mac.json",
        ".x.safetensors.part",
    ],
)
def test_unneeded_or_dangerous_file_is_left(name):
    """Code, pickles, other frameworks' weights, subfolders and pictures are left on the Hub."""
    assert name not in selected("config.json", "model.safetensors", name)


def test_small_files_come_first():
    """Weights come last, so that a wrong configuration shows before gigabytes are fetched."""
    names = selected("model-2.safetensors", "tokenizer.json", "model-1.safetensors", "config.json")

    assert names == ["config.json", "tokenizer.json", "model-1.safetensors", "model-2.safetensors"]


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/etc/passwd",
        "..\\evil",
        "C:\\evil",
        "a//b",
        "./a",
        "",
        "a\nb",
        "a\x1b[2J",
        "..",
        "a/",
    ],
)
def test_unsafe_name_refuses_the_repository(name):
    """One file name that could lead out of the folder, or garble the terminal, refuses the whole repository."""
    with pytest.raises(BadCheckpoint, match="unsafe") as caught:
        selected("config.json", "model.safetensors", name)

    assert "\n" not in caught.value.problem
    assert "\x1b" not in caught.value.problem


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["config.json", "pytorch_model.bin"], "pickle"),
        (["config.json", "original/consolidated.00.PTH"], "pickle"),
        (["config.json", "model-Q4_K_M.gguf"], "no safetensors"),
        (["config.json", "sub/model.safetensors"], "no safetensors"),
        ([], "no safetensors"),
        (["model.safetensors"], r"no config\.json"),
        (["config.json", "model.safetensors", "MODEL.safetensors"], "capital letters"),
    ],
)
def test_unusable_repository_is_refused(names, words):
    """A repository that r1mac cannot run is refused by its listing alone, with the reason."""
    with pytest.raises(BadCheckpoint, match=words):
        selected(*names)


def test_disk_is_checked_before_anything_else(tmp_path):
    """Room is wanted for the missing bytes and one percent more, and both numbers are said."""
    file = RepoFile(name="a.safetensors", size_bytes=100_000_000_000, sha256="0" * 64, git_blob_id=None)
    listing = RepoListing(repo="org/repo", commit="c" * 40, files=(file,))
    events = fetch(listing, listing.files, tmp_path / "x", free_disk_bytes=lambda _: 100_900_000_000)

    with pytest.raises(DiskFull, match=r"101\.0 GB more .* 100\.9 GB free"):
        next(events)


def answer(status: int, **headers: str) -> Exception:
    """Return the library's exception for an answer of the Hub."""
    request = httpx2.Request("GET", "https://huggingface.co/api/models/org/repo")
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    response = httpx2.Response(status, headers=headers, request=request, text="many\nlines\nof advice")
    with pytest.raises(errors.HfHubHTTPError) as caught:
        hf_raise_for_status(response)
    return caught.value


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: answer(401), UnknownModel),  # what the Hub says of a missing or private repository
        (lambda: answer(404, x_error_code="RepoNotFound"), UnknownModel),
        (lambda: answer(404, x_error_code="RevisionNotFound"), UnknownModel),
        (lambda: answer(404), UnknownModel),
        (lambda: answer(401, x_error_message="Invalid credentials in Authorization header"), AccessDenied),
        (lambda: answer(403, x_error_code="GatedRepo"), AccessDenied),
        (lambda: answer(403), AccessDenied),
        (lambda: answer(400), DownloadFailed),
        (lambda: answer(429), DownloadFailed),
        (lambda: answer(503), DownloadFailed),
        (lambda: httpx2.ConnectError("[Errno 111] Connection refused"), Offline),
        (lambda: httpx2.ReadTimeout(""), Offline),
        (lambda: httpx2.ProxyError("407\nlong page"), Offline),
        (lambda: httpx2.InvalidURL("bad"), Offline),
        (lambda: errors.OfflineModeIsEnabled("long\ntext"), Offline),
        (lambda: errors.HFValidationError("long\ntext"), UnknownModel),
    ],
)
def test_network_error_is_one_sentence_of_ours(make, kind):
    """Every failure of the libraries becomes one line with the repository or address, and a hint."""
    error = remote.error_of(make(), "org/repo")

    assert type(error) is kind
    assert "\n" not in error.problem
    assert "org/repo" in error.problem or "://" in error.problem
    assert error.hint


def test_bug_is_not_hidden():
    """An exception that is nobody's network is raised again as it is."""
    with pytest.raises(ZeroDivisionError):
        remote.error_of(ZeroDivisionError(), "org/repo")


def test_own_error_is_kept():
    """An error that already speaks to the person is not wrapped again."""
    error = R1MacError("said")

    assert remote.error_of(error, "org/repo") is error
