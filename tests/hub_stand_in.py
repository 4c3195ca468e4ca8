"""A stand-in for the Hugging Face Hub: repositories from a folder, over real HTTP on this machine.

As a process, for tests that start programs (prints one line, the address to put into HF_ENDPOINT)::

    python tests/hub_stand_in.py FOLDER [--port N] [--fault 'org/repo/model.safetensors={"cut_after_bytes": 1000}']

In a test::

    with StandIn(folder) as hub:
        hub.fault("org/repo/model.safetensors", Fault(cut_after_bytes=1000, times=1))
        ...  # run something with HF_ENDPOINT=hub.url
        assert hub.served_bytes["org/repo/model.safetensors"] < ...

FOLDER holds ``org/repo/file``. What huggingface_hub 2.4 asks for is answered as the real Hub
answers: the model's page of the API with ``blobs=true``, the tree, and ``resolve`` with HEAD, GET
and Range; files that the Hub keeps as LFS (``*.safetensors``, ``tokenizer.json``) by a redirect to
an address without the repository's. A fault's key is a file, or ``org/repo`` for its listing.
``GET /_stand_in/served`` gives the bytes served so far by file, and ``PUT /_stand_in/faults`` takes
faults as JSON, so another process can steer this one.
"""

import argparse
import hashlib
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

_LFS = ("*.safetensors", "tokenizer.json")
_BLOCK_BYTES = 2**14


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with one file or listing; fields left at their default do nothing.

    Attributes:
        times: how many requests it happens to; None is all of them.
        cut_after_bytes: the connection closes after so many bytes of the body.
        wrong_bytes: the last byte of the file is another one.
        status: answered instead of the file.
        error_code: the header X-Error-Code that goes with *status*.
        bytes_per_s: how fast the body comes.
        silent: the request is accepted and never answered.
        ignore_range: a Range is answered with 200 and the whole file.
        body: sent instead of the file or listing, with status 200.
        more_names: names that the listing has besides the real ones.
    """

    times: int | None = None
    cut_after_bytes: int | None = None
    wrong_bytes: bool = False
    status: int | None = None
    error_code: str | None = None
    bytes_per_s: int | None = None
    silent: bool = False
    ignore_range: bool = False
    body: str | None = None
    more_names: tuple[str, ...] = ()


class StandIn:
    """The server. Its thread runs between ``with StandIn(folder) as hub`` and the end of the block."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self.served_bytes: Counter[str] = Counter()
        self.requests: list[str] = []
        self.closing = threading.Event()
        from tests.hub_uploads import Uploads

        self.uploads = Uploads(self)
        self._faults: dict[str, Fault] = {}
        self._lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.server.stand_in = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def fault(self, key: str, fault: Fault | None) -> None:
        """Set what goes wrong with *key* from now on; None heals it."""
        with self._lock:
            self._faults[key] = fault or Fault()

    def take_fault(self, key: str) -> Fault:
        """Return what goes wrong with this request for *key*, and count it."""
        with self._lock:
            fault = self._faults.get(key, Fault())
            if fault.times is None:
                return fault
            if fault.times == 0:
                return Fault()
            fault.times -= 1
            return Fault(**{**asdict(fault), "times": None})

    def count(self, key: str, sent_bytes: int) -> None:
        """Count bytes of a file's body as served."""
        with self._lock:
            self.served_bytes[key] += sent_bytes

    def commit(self, repo: str) -> str:
        """Return the commit of *repo*, which changes with its files."""
        digests = [f"{path.name}:{_git_blob_id(path)}" for path in self.files(repo)]
        return hashlib.sha1("\n".join([repo, *digests]).encode()).hexdigest()

    def files(self, repo: str) -> list[Path]:
        """Return the files of *repo*."""
        return sorted(path for path in (self.folder / repo).rglob("*") if path.is_file())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> StandIn:
        return self.server.stand_in  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        content = self._sent()
        match self._parts():
            case ["_stand_in", "faults"]:
                for key, fault in json.loads(content).items():
                    self.hub.fault(key, Fault(**fault))
                self._json({})
            case ["_lfs", org, name, oid]:
                if not self._went_wrong(self.hub.take_fault(f"{org}/{name}:object")):
                    self._status(self.hub.uploads.put(oid, content))
            case _:
                self._status(404)

    def do_POST(self) -> None:
        content = self._sent()
        route = self.hub.uploads.route(self._parts(), content)
        if route is None:
            self._status(404)
        elif not self._went_wrong(self.hub.take_fault(":".join(route))):
            status, answer = self.hub.uploads.answer(*route, content, self.headers.get("Authorization"))
            self._answer(status, json.dumps(answer).encode(), "application/json")

    def do_GET(self) -> None:
        match self._parts():
            case ["_stand_in", "served"]:
                self._json(dict(self.hub.served_bytes))
            case ["_cdn", org, name, *path]:
                self._body(f"{org}/{name}", "/".join(path))
            case ["api", "models", org, name]:
                self._listing(f"{org}/{name}", "main", tree=False)
            case ["api", "models", org, name, "revision", revision]:
                self._listing(f"{org}/{name}", revision, tree=False)
            case ["api", "models", org, name, "tree", revision, *_]:
                self._listing(f"{org}/{name}", revision, tree=True)
            case [org, name, "resolve", revision, *path]:
                self._resolve(f"{org}/{name}", revision, "/".join(path))
            case _:
                self._status(404)

    def _parts(self) -> list[str]:
        """Return the parts of the address, and note the request."""
        self.hub.requests.append(f"{self.command} {self.path}")
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def _sent(self) -> bytes:
        """Return the request's body, whose length may not have been said."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _listing(self, repo: str, revision: str, *, tree: bool) -> None:
        fault = self.hub.take_fault(repo)
        if self._went_wrong(fault) or not self._is_there(repo, revision):
            return
        blobs = tree or parse_qs(urlsplit(self.path).query).get("blobs") == ["true"]
        entries = [self._entry(path, repo, tree=tree, blobs=blobs) for path in self.hub.files(repo)]
        digests = {"blobId": "0" * 40, "oid": "0" * 40}
        entries += [
            {"rfilename": name, "path": name, "type": "file", "size": 1, **digests} for name in fault.more_names
        ]
        private = self.hub.uploads.visibility.get(repo) == "private"
        page = {"id": repo, "sha": self.hub.commit(repo), "private": private, "siblings": entries}
        self._json(entries if tree else page)

    def _entry(self, path: Path, repo: str, *, tree: bool, blobs: bool) -> dict[str, Any]:
        name = path.relative_to(self.hub.folder / repo).as_posix()
        size = path.stat().st_size
        lfs = {"size": size, "pointerSize": 134} if is_lfs(name) else None
        if tree:
            shown = {"type": "file", "path": name, "size": size, "oid": _git_blob_id(path)}
            return shown | ({"lfs": lfs | {"oid": _sha256(path)}} if lfs else {})
        if not blobs:
            return {"rfilename": name}
        shown = {"rfilename": name, "size": size, "blobId": _git_blob_id(path)}
        return shown | ({"lfs": lfs | {"sha256": _sha256(path)}} if lfs else {})

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        if not self._is_there(repo, revision):
            return
        path = self.hub.folder / repo / name
        if not path.is_file():
            self._status(404, error_code="EntryNotFound")
        elif is_lfs(name):
            self.send_response(302)
            self._file_headers(path, repo)
            self.send_header("Location", f"/_cdn/{repo}/{quote(name)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._body(repo, name)

    def _body(self, repo: str, name: str) -> None:
        path, key = self.hub.folder / repo / name, f"{repo}/{name}"
        # huggingface_hub asks with HEAD first; a fault is meant for the bytes.
        fault = self.hub.take_fault(key) if self.command == "GET" else Fault()
        if self._went_wrong(fault):
            return
        content = path.read_bytes()
        if fault.wrong_bytes:
            content = content[:-1] + bytes([content[-1] ^ 0xFF])
        first, last = _range(self.headers.get("Range"), len(content))
        if first >= len(content) > 0:
            self._status(416)
            return
        if "Range" in self.headers and not fault.ignore_range:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        else:
            self.send_response(200)
        self._file_headers(path, repo)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self._send(key, content, fault)

    def _send(self, key: str, content: bytes, fault: Fault) -> None:
        whole = len(content)
        content = content[: fault.cut_after_bytes]
        block = _BLOCK_BYTES if fault.bytes_per_s is None else max(1, fault.bytes_per_s // 20)
        try:
            for start in range(0, len(content), block):
                piece = content[start : start + block]
                self.wfile.write(piece)
                self.hub.count(key, len(piece))
                if fault.bytes_per_s is not None and self.hub.closing.wait(len(piece) / fault.bytes_per_s):
                    break
        except OSError:
            self.close_connection = True  # the client has gone, as some tests want it to
        if len(content) < whole:
            self.close_connection = True

    def _went_wrong(self, fault: Fault) -> bool:
        """Answer as *fault* says, if it leaves no room for a proper answer."""
        if fault.silent:
            self.hub.closing.wait(600)
            self.close_connection = True
        elif fault.status is not None:
            self._status(fault.status, error_code=fault.error_code)
        elif fault.body is not None:
            self._answer(200, fault.body.encode(), "text/html")
        else:
            return False
        return True

    def _is_there(self, repo: str, revision: str) -> bool:
        if not (self.hub.folder / repo).is_dir():
            # The Hub does not tell a stranger which private repositories exist. (Its 401 has no code;
            # huggingface_hub takes that for RepoNotFound too, but only from an https address.)
            self._status(404 if "Authorization" in self.headers else 401, error_code="RepoNotFound")
            return False
        if revision not in {"main", self.hub.commit(repo)}:
            self._status(404, error_code="RevisionNotFound")
            return False
        return True

    def _file_headers(self, path: Path, repo: str) -> None:
        self.send_header("X-Repo-Commit", self.hub.commit(repo))
        self.send_header("Accept-Ranges", "bytes")
        if is_lfs(path.name):
            self.send_header("X-Linked-Size", str(path.stat().st_size))
            self.send_header("X-Linked-Etag", f'"{_sha256(path)}"')
            self.send_header("ETag", f'"{_sha256(path)}"')
        else:
            self.send_header("ETag", f'"{_git_blob_id(path)}"')

    def _status(self, status: int, *, error_code: str | None = None) -> None:
        self._answer(status, json.dumps({"error": f"stand-in says {status}"}).encode(), "application/json", error_code)

    def _json(self, data: object) -> None:
        self._answer(200, json.dumps(data).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str, error_code: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if error_code is not None:
            self.send_header("X-Error-Code", error_code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _range(header: str | None, size_bytes: int) -> tuple[int, int]:
    """Return the first and the last byte that a request's Range asks for."""
    first, _, last = (header or "bytes=0-").removeprefix("bytes=").partition("-")
    return int(first), min(int(last or size_bytes), size_bytes - 1)


def is_lfs(name: str) -> bool:
    """Tell whether the Hub keeps the file *name* as an LFS object."""
    return any(fnmatchcase(name, pattern) for pattern in _LFS)


def _sha256(path: Path) -> str:
    return _digests(path, path.stat().st_mtime_ns, path.stat().st_size)[0]


def _git_blob_id(path: Path) -> str:
    return _digests(path, path.stat().st_mtime_ns, path.stat().st_size)[1]


@cache
def _digests(path: Path, _mtime_ns: int, size_bytes: int) -> tuple[str, str]:
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size_bytes)
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
            sha1.update(block)
    return sha256.hexdigest(), sha1.hexdigest()


def main() -> None:
    """Serve a folder until this process is ended."""
    parser = argparse.ArgumentParser(description="Serve the repositories of a folder as the Hub would.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fault", action="append", default=[], metavar="KEY=JSON")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    with StandIn(arguments.folder, arguments.port) as hub:
        for text in arguments.fault:
            key, _, fault = text.partition("=")
            hub.fault(key, Fault(**json.loads(fault)))
        print(hub.url, flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
