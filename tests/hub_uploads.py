"""What the stand-in for the Hub does with uploads: repositories made, files taken, commits.

It answers what huggingface_hub 2.4 asks for where hf_xet is off (``HF_HUB_DISABLE_XET=1``): ``repos/create``,
``validate-yaml``, ``preupload``, git-lfs's ``objects/batch`` with a PUT and a verification for each object, and
``commit``. Faults have the keys ``org/repo:create``, ``:preupload``, ``:batch``, ``:object`` and ``:commit``.

A token ``hf_write…`` may write below its own name, ``me`` unless the token says otherwise (``hf_write_acme``);
any other may only read.
"""

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.hub_stand_in import StandIn

REGULAR_BYTES = 10**6


class Uploads:
    """What has been uploaded to one stand-in.

    Attributes:
        visibility: of each repository that was created.
        objects: bytes by their sha256.
        commits: names of each commit's files, by repository.
    """

    def __init__(self, hub: "StandIn") -> None:
        self.hub = hub
        self.visibility: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.received_bytes = 0
        self.commits: dict[str, list[list[str]]] = {}

    def route(self, parts: list[str], content: bytes) -> tuple[str, str] | None:
        """Return the repository that a POST is about and what it wants, or None where it is nothing known."""
        match parts:
            case ["api", "validate-yaml"]:
                return "", "validate"
            case ["api", "repos", "create"]:
                data = json.loads(content)
                return f"{data.get('organization') or 'me'}/{data['name']}", "create"
            case ["api", "models", org, name, "preupload" | "commit" as action, _]:
                return f"{org}/{name}", action
            case [org, name, "info", "lfs", "objects", "batch"]:
                return f"{org}/{name.removesuffix('.git')}", "batch"
            case ["_lfs", org, name, _, "verify"]:
                return f"{org}/{name}", "verify"
        return None

    def answer(self, repo: str, action: str, content: bytes, authorization: str | None) -> tuple[int, dict[str, Any]]:
        """Return status and JSON of the answer."""
        if action in {"validate", "verify"}:
            return 200, {"errors": [], "warnings": []}
        if (status := _status_of(authorization, repo)) != 200:
            return status, {"error": f"stand-in says {status}"}
        match action:
            case "create":
                return self.create(repo, json.loads(content))
            case "preupload":
                return 200, self.preupload(json.loads(content))
            case "batch":
                return 200, self.batch(repo, json.loads(content))
        return 200, self.commit(repo, content)

    def create(self, repo: str, data: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Make a repository."""
        known = (self.hub.folder / repo).is_dir()
        if not known:
            (self.hub.folder / repo).mkdir(parents=True)
            self.visibility[repo] = data.get("visibility", "public")
        return (409 if known else 200), {"url": f"{self.hub.url}/{repo}", "error": "You already created this model"}

    def preupload(self, data: dict[str, Any]) -> dict[str, Any]:
        """Say of each file whether it is kept as git blob or LFS object."""
        from tests.hub_stand_in import is_lfs

        files = []
        for file in data["files"]:
            mode = "lfs" if is_lfs(file["path"]) or file["size"] > REGULAR_BYTES else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        return {"files": files}

    def batch(self, repo: str, data: dict[str, Any]) -> dict[str, Any]:
        """Say where each LFS object goes; nowhere if it is here already."""
        objects = []
        for item in data["objects"]:
            oid = item["oid"]
            known = {} if oid in self.objects else {"actions": self._actions(repo, oid)}
            objects.append({"oid": oid, "size": item["size"], **known})
        return {"transfer": "basic", "objects": objects}

    def put(self, oid: str, content: bytes) -> int:
        """Take an object's bytes, and return the status."""
        self.received_bytes += len(content)
        if hashlib.sha256(content).hexdigest() != oid:
            return 400
        self.objects[oid] = content
        return 200

    def commit(self, repo: str, text: bytes) -> dict[str, Any]:
        """Put a commit's files into the repository's folder."""
        names = []
        for line in text.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                content = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                content = self.objects[value["oid"]]
            else:
                continue
            path = self.hub.folder / repo / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            names.append(value["path"])
        self.commits.setdefault(repo, []).append(sorted(names))
        commit = self.hub.commit(repo)
        return {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit}

    def _actions(self, repo: str, oid: str) -> dict[str, Any]:
        return {
            "upload": {"href": f"{self.hub.url}/_lfs/{repo}/{oid}"},
            "verify": {"href": f"{self.hub.url}/_lfs/{repo}/{oid}/verify"},
        }


def _status_of(authorization: str | None, repo: str) -> int:
    """Return 200 where a token may write to *repo*, else the status of the refusal."""
    token = (authorization or "").removeprefix("Bearer ")
    if not token:
        return 401
    name = token.removeprefix("hf_write").removeprefix("_") or "me"
    return 200 if token.startswith("hf_write") and repo.startswith(f"{name}/") else 403
