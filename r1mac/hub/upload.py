"""A model's folder to a repository on the Hub, by huggingface_hub's own upload."""

from collections.abc import Sequence
from pathlib import Path

from r1mac.errors import AccessDenied, BadCheckpoint, DownloadFailed, R1MacError, UnknownModel
from r1mac.formats.quality import QUALITY_NAME
from r1mac.hub import remote
from r1mac.hub.manifest import MANIFEST_NAME, load_manifest
from r1mac.hub.store import missing_files

_LOCKED_STATUSES = frozenset({401, 403})
_CONFLICTS = frozenset({409, 412})
_MISSING_STATUS = 404
_LOGIN_HINT = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"


def check_folder(folder: Path) -> tuple[tuple[str, int], ...]:
    """Return the files of the model in *folder* that go to the Hub, with their sizes.

    What the folder has beside the files of its manifest, and quality.json, stays here.

    Raises:
        BadCheckpoint: it is no model of r1mac's, or a file is gone or of another size.
    """
    manifest = load_manifest(folder)
    if manifest is None:
        raise BadCheckpoint(
            f"{folder} has no {MANIFEST_NAME}, so it is no model that r1mac made",
            hint="push a model that `r1mac list` shows, or the result of `r1mac convert`",
        )
    if absent := missing_files(folder, manifest):
        raise BadCheckpoint(
            f"{folder} is not as it was made: {absent[0]} is gone or has another size",
            hint="make the model again with `r1mac convert` or `r1mac pull`",
        )
    quality = folder / QUALITY_NAME
    measured = [(QUALITY_NAME, quality.stat().st_size)] if quality.is_file() else []
    return (*((file.name, file.size_bytes) for file in manifest.files), *measured)


def visibility_of(repo: str) -> str | None:
    """Return ``public`` or ``private`` for a repository that this account sees, or None where it sees none.

    Raises:
        UnknownModel: *repo* is no repository's name.
        R1MacError: as :func:`remote.error_of` says.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    def question() -> str | None:
        validate_repo_id(repo)
        try:
            return "private" if HfApi().model_info(repo, timeout=remote.timeout_seconds()).private else "public"
        except RepositoryNotFoundError:
            return None

    if "/" not in repo:
        raise UnknownModel(
            f"{repo!r} is not the id of a Hub repository", hint="an id is ORGANISATION/NAME or USER/NAME"
        )
    return remote.ask(question, repo)


def upload(folder: Path, names: Sequence[str], repo: str, *, public: bool, quiet: bool) -> str:
    """Bring the files *names* of *folder* to the repository *repo*, made where it is absent; return the commit's page.

    A stopped upload goes on where it was when it is started again: what has arrived is not sent twice. Files of
    the repository that are not among *names* stay.

    Raises:
        AccessDenied: there is no login, or it may not write there.
        DownloadFailed: the Hub refused, or somebody else changed the repository meanwhile.
        Offline: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if quiet:
        disable_progress_bars()
    api = HfApi()
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        # Square brackets would be read as a set of characters.
        patterns = [name.replace("[", "[[]") for name in names]
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=patterns, commit_message="Upload by r1mac"
        )
    except Exception as error:
        # The library wraps what went wrong with one file.
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ is not None else error
        assert isinstance(cause, Exception)
        raise refusal(cause, repo) from error
    return str(commit.commit_url)


def refusal(error: Exception, repo: str) -> R1MacError:
    """Return what *error* means to a person who wanted to write to *repo*.

    Raises:
        Exception: *error* itself, if it is none of the network's or the Hub's: that is a bug.
    """
    from huggingface_hub import errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if status in _LOCKED_STATUSES:
        who = "this account may not write to" if status == 403 else "the Hub wants a login for writing to"  # noqa: PLR2004
        return AccessDenied(f"{who} {repo} ({status})", hint=_LOGIN_HINT)
    if status == _MISSING_STATUS:
        return AccessDenied(f"the Hub shows this account no repository {repo} to write to (404)", hint=_LOGIN_HINT)
    if status in _CONFLICTS:
        return DownloadFailed(
            f"{repo} was changed by somebody else meanwhile, so the Hub refused the upload ({status})",
            hint=remote.GO_ON_HINT,
        )
    if status is not None:
        return DownloadFailed(f"the Hub refused the upload to {repo}: {_reason(error)}", hint=remote.GO_ON_HINT)
    return remote.error_of(error, repo)


def _reason(error: Exception) -> str:
    """Return what the Hub itself said, in one line."""
    message = getattr(error, "server_message", None) or ""
    return " ".join([remote.reason_of(error), *message.split()])[:300]
