"""What can go wrong between here and the Hub: the one place that knows the libraries' exceptions."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from r1mac.errors import AccessDenied, DownloadFailed, Offline, R1MacError, UnknownModel

ATTEMPT_COUNT = 4
FIRST_WAIT_SECONDS = 1.0
GO_ON_HINT = "run the same command again: it goes on where it stopped"

# 408 and 429 ask for patience; the others are a server in trouble.
_PASSING_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_LOCKED_STATUSES = frozenset({401, 403})
_MISSING_STATUS = 404

_Answer = TypeVar("_Answer")


def ask(question: Callable[[], _Answer], repo: str, *, file: str | None = None) -> _Answer:
    """Return the Hub's answer to a small *question* about *repo* or its *file*, asking again while a failure may pass.

    A computer without a network is told so at once; a silent server costs ATTEMPT_COUNT time-outs.

    Raises:
        R1MacError: as :func:`error_of` says.
    """
    import httpx2

    for attempt in range(ATTEMPT_COUNT):
        try:
            return question()
        except R1MacError:
            raise
        except Exception as error:
            last = attempt == ATTEMPT_COUNT - 1
            if last or isinstance(error, httpx2.ConnectError) or not may_pass(error):
                raise error_of(error, repo, file=file) from error
            time.sleep(wait_seconds(attempt))
    raise AssertionError  # the last attempt returns or raises


def wait_seconds(attempt: int) -> float:
    """Return the pause after the failed *attempt*, counted from 0."""
    return FIRST_WAIT_SECONDS * 2.0**attempt


def timeout_seconds() -> float:
    """Return how long the Hub may be silent: 10 s, unless ``HF_HUB_DOWNLOAD_TIMEOUT`` says otherwise."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def may_pass(error: Exception) -> bool:
    """Return whether asking again could help: a lost connection, silence, or a server in trouble."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING_STATUSES
    return isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.UnsupportedProtocol)


def error_of(error: Exception, repo: str, *, file: str | None = None) -> R1MacError:
    """Return what *error* means to a person who wanted *repo*, or one *file* of it.

    Raises:
        Exception: *error* itself, if it is none of the network's or the Hub's: that is a bug.
    """
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, R1MacError):
        return error
    if isinstance(error, errors.HFValidationError):
        hint = "an id is ORGANISATION/NAME, such as mlx-community/deepseek-r1-distill-qwen-1.5b"
        return UnknownModel(f"{repo!r} is not the id of a Hub repository", hint=hint)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return Offline(f"{repo} was not fetched, because HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error, repo, file)
    if isinstance(error, httpx2.HTTPError | httpx2.InvalidURL):
        hint = "check the network (and HF_ENDPOINT, if you have set it); `r1mac list` shows what runs without it"
        return Offline(f"cannot reach the Hub at {_endpoint()}: {reason_of(error)}", hint=hint)
    raise error


def reason_of(error: Exception) -> str:
    """Return why *error* happened in a few words of one line, without the library's own advice."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return f"the Hub answered {error.response.status_code}"
    if isinstance(error, httpx2.TimeoutException):
        return f"no answer within {timeout_seconds():.0f} s"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def cut_off(error: Exception, repo: str, file: str) -> R1MacError:
    """Return what to say after the last attempt at *file*, of which an earlier request was answered."""
    known = error_of(error, repo, file=file)
    if not may_pass(error):
        return known
    return DownloadFailed(
        f"{file} of {repo} did not arrive after {ATTEMPT_COUNT} attempts: {reason_of(error)}", hint=GO_ON_HINT
    )


def _refusal(error: Any, repo: str, file: str | None) -> R1MacError:
    """Return the meaning of an answer with a status of 400 or more."""
    from huggingface_hub import errors

    status = error.response.status_code
    page = f"https://huggingface.co/{repo}"
    if isinstance(error, errors.GatedRepoError):
        hint = f"accept its conditions at {page}, then log in with `hf auth login`"
        return AccessDenied(f"{repo} is gated: its owner lets in only those who accept the conditions", hint=hint)
    if isinstance(error, errors.RevisionNotFoundError):
        return UnknownModel(f"the Hub repository {repo} has no such revision", hint=f"{page} shows its branches")
    if isinstance(error, errors.EntryNotFoundError) or (file is not None and status == _MISSING_STATUS):
        return DownloadFailed(f"the Hub lists {file} in {repo}, and does not have it", hint=f"look at {page}")
    if isinstance(error, errors.RepositoryNotFoundError) or status == _MISSING_STATUS:
        hint = "check the spelling; if it is private, log in with `hf auth login`"
        return UnknownModel(f"the Hub has no repository {repo}, or it is private", hint=hint)
    if status in _LOCKED_STATUSES:
        hint = f"look at {page}, and log in with `hf auth login` to an account that may read it"
        return AccessDenied(f"the Hub refuses {repo} to this account ({status})", hint=hint)
    return DownloadFailed(
        f"the Hub answered {status} for {f'{file} of ' if file else ''}{repo}", hint="try again later"
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
