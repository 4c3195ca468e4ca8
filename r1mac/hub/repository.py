"""A model repository on the Hub: what it has, and which of it r1mac takes."""

import json
import re
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

from r1mac import __version__
from r1mac.errors import BadCheckpoint, DownloadFailed
from r1mac.hub import remote
from r1mac.units import format_size

# Only what is listed here is ever fetched: no code (*.py), nothing that unpickles (*.bin, *.pt),
# nothing in a subfolder (original/ holds the same weights again).
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "*.safetensors.index.json",
)
_WEIGHTS = "*.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_FORBIDDEN = (*_PICKLES, "*.py", "*.h5", "*.msgpack", "*.onnx")
_MOST_CONFIG_BYTES = 10**6
_MOST_LISTING_BYTES = 10**8
_OTHER_REPO_HINT = "name a repository with safetensors weights, such as deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoFile:
    """One file of a repository.

    Attributes:
        name: path in the repository, as the Hub says it: not yet checked.
        size_bytes: its size.
        sha256: of its bytes; None for a small file that is not kept as LFS.
        git_blob_id: SHA-1 of git's blob; None where *sha256* is there.
    """

    name: str
    size_bytes: int
    sha256: str | None
    git_blob_id: str | None

    @property
    def digest(self) -> str:
        """The digest that the file's bytes must have: *sha256*, or else *git_blob_id*."""
        digest = self.sha256 or self.git_blob_id
        assert digest is not None
        return digest


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoListing:
    """The files of a repository at one commit."""

    repo: str
    commit: str
    files: tuple[RepoFile, ...]


def list_files(repo: str, revision: str | None = None) -> RepoListing:
    """Ask the Hub once for the files of *repo*, at *revision* or its main branch.

    Raises:
        UnknownModel: there is no such repository or revision.
        AccessDenied: it wants a login or an accepted licence.
        Offline: the Hub cannot be reached.
        DownloadFailed: the Hub's answer makes no sense.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import validate_repo_id

    def listing() -> RepoListing:
        # The library's HfApi would ask the same, without a time-out of its own and 0.2 s later (measured
        # on Linux, November 2026: what importing hf_api costs).
        validate_repo_id(repo)
        path = f"/revision/{quote(revision, safe='')}" if revision else ""
        answer = _content(f"{constants.ENDPOINT}/api/models/{repo}{path}?blobs=true", repo, _MOST_LISTING_BYTES)
        try:
            return _parse_listing(answer, repo)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DownloadFailed(
                f"the answer about {repo} is not one of the Hub's",
                hint="a network that wants a login (hotel, office) answers like that: open a web page first",
            ) from error

    return remote.ask(listing, repo)


def fetch_config(repo: str, revision: str | None = None) -> dict[str, Any]:
    """Return config.json of *repo* without writing anything to the disk.

    Raises:
        BadCheckpoint: the repository has none, or it is not a JSON object.
        R1MacError: as for :func:`list_files`.
    """
    from huggingface_hub.errors import EntryNotFoundError

    def content() -> bytes:
        try:
            return _content(file_url(repo, "config.json", revision or "main"), repo, _MOST_CONFIG_BYTES)
        except EntryNotFoundError as error:
            raise _no_config(repo) from error

    try:
        config = json.loads(remote.ask(content, repo))
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"config.json of {repo} is not valid JSON") from error
    if not isinstance(config, dict):
        raise BadCheckpoint(f"config.json of {repo} is not a JSON object")
    return config


def select_files(listing: RepoListing) -> tuple[RepoFile, ...]:
    """Return the files of *listing* that r1mac needs, the small ones first.

    Raises:
        BadCheckpoint: a file's name is unsafe, or the repository has no config.json or no safetensors.
    """
    for file in listing.files:
        _check_name(file.name, listing.repo)
    wanted = [file for file in listing.files if _is_wanted(file.name)]
    names = [file.name for file in wanted]
    if not any(fnmatchcase(name, _WEIGHTS) for name in names):
        raise _no_weights(listing)
    if "config.json" not in names:
        raise _no_config(listing.repo)
    if len({name.casefold() for name in names}) < len(names):
        # On a Mac's disk they would be one file.
        raise BadCheckpoint(f"{listing.repo} has files whose names differ only in capital letters")
    return tuple(sorted(wanted, key=lambda file: (fnmatchcase(file.name, _WEIGHTS), file.name)))


def file_url(repo: str, name: str, revision: str) -> str:
    """Return the address of a file's bytes."""
    from huggingface_hub import hf_hub_url

    return str(hf_hub_url(repo, name, revision=revision))


def fetch_beginning(listing: RepoListing, file: RepoFile, size_bytes: int) -> bytes:
    """Return the first *size_bytes* of a file, without writing anything to the disk.

    Raises:
        DownloadFailed: the file ends before.
        R1MacError: as for :func:`list_files`.
    """
    url = file_url(listing.repo, file.name, listing.commit)
    content = remote.ask(lambda: _beginning(url, size_bytes), listing.repo, file=file.name)
    if len(content) < size_bytes:
        raise DownloadFailed(
            f"{file.name} of {listing.repo} gave {len(content)} of its first {size_bytes} bytes",
            hint=remote.GO_ON_HINT,
        )
    return content


def headers() -> dict[str, str]:
    """Return what goes with each request: the user's token, if any, and that bytes must come uncompressed."""
    from huggingface_hub.utils import build_hf_headers

    return {**build_hf_headers(library_name="r1mac", library_version=__version__), "Accept-Encoding": "identity"}


def _content(url: str, repo: str, most_bytes: int) -> bytes:
    """Return what is at *url*, something small about *repo*."""
    import httpx2
    from huggingface_hub.utils import get_session, hf_raise_for_status

    timeout = remote.timeout_seconds()
    deadline = time.monotonic() + 3 * timeout
    with get_session().stream("GET", url, headers=headers(), timeout=timeout) as response:
        hf_raise_for_status(response)
        content = bytearray()
        for piece in response.iter_bytes():
            content += piece
            if len(content) > most_bytes:
                raise DownloadFailed(f"the Hub's answer about {repo} is larger than {format_size(most_bytes)}")
            if time.monotonic() > deadline:
                raise httpx2.ReadError(f"only {len(content)} bytes came in {3 * timeout:.0f} s")
        return bytes(content)


def _beginning(url: str, size_bytes: int) -> bytes:
    from huggingface_hub.utils import get_session, hf_raise_for_status

    wanted = headers() | {"Range": f"bytes=0-{size_bytes - 1}"}
    with get_session().stream("GET", url, headers=wanted, timeout=remote.timeout_seconds()) as response:
        hf_raise_for_status(response)
        content = bytearray()
        for piece in response.iter_bytes():
            content += piece
            if len(content) >= size_bytes:  # a server that knows no Range would go on to the file's end
                break
        return bytes(content[:size_bytes])


def _parse_listing(text: bytes, repo: str) -> RepoListing:
    """Return the listing that the Hub's JSON *text* holds.

    Raises:
        ValueError: it is not JSON, or a size or digest in it cannot be one.
        KeyError: a field is absent; TypeError and AttributeError where one is of another kind.
    """
    data = json.loads(text)
    files = tuple(_parse_file(sibling) for sibling in data["siblings"])
    return RepoListing(repo=repo, commit=_matching(_SHA1, data["sha"]), files=files)


def _parse_file(sibling: Any) -> RepoFile:
    lfs = sibling.get("lfs")
    size_bytes = (lfs or sibling)["size"]
    if type(size_bytes) is not int or size_bytes < 0:
        raise ValueError(size_bytes)
    return RepoFile(
        name=str(sibling["rfilename"]),
        size_bytes=size_bytes,
        sha256=_matching(_SHA256, lfs["sha256"]) if lfs else None,
        git_blob_id=None if lfs else _matching(_SHA1, sibling["blobId"]),
    )


def _matching(pattern: re.Pattern[str], digest: object) -> str:
    # Digests become parts of file names here, so they must be nothing else.
    if not isinstance(digest, str) or not pattern.fullmatch(digest):
        raise ValueError(digest)
    return digest


def _check_name(name: str, repo: str) -> None:
    parts = name.split("/")
    if "\\" in name or not name.isprintable() or any(part in {"", ".", ".."} for part in parts):
        raise BadCheckpoint(
            f"{repo} has a file with the unsafe name {name!r}, so nothing of it was fetched",
            hint="choose another repository, and report this one to the Hub",
        )


def _is_wanted(name: str) -> bool:
    return (
        "/" not in name
        # What macOS leaves beside files on foreign disks (._model.safetensors) is no weight.
        and not name.startswith(".")
        and not any(fnmatchcase(name.lower(), pattern) for pattern in _FORBIDDEN)
        and any(fnmatchcase(name, pattern) for pattern in (*_SMALL_FILES, _WEIGHTS))
    )


def _no_config(repo: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{repo} has no config.json, so it is not a model that r1mac can run",
        hint=_OTHER_REPO_HINT,
    )


def _no_weights(listing: RepoListing) -> BadCheckpoint:
    names = [file.name.lower() for file in listing.files]
    if any(fnmatchcase(name, pattern) for name in names for pattern in _PICKLES):
        return BadCheckpoint(
            f"{listing.repo} has its weights only as pickle files, which can run any code when they are loaded",
            hint=_OTHER_REPO_HINT,
        )
    return BadCheckpoint(f"{listing.repo} has no safetensors weights", hint=_OTHER_REPO_HINT)
