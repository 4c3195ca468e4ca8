"""What goes wrong, as HTTP says it; each dialect gives it the body that its clients know."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from r1mac import errors
from r1mac.errors import R1MacError
from r1mac.server.admission import Refused
from r1mac.server.asked import BadRequest

_RETRY_AFTER_SECONDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that went wrong.

    Attributes:
        status: HTTP's.
        message: a sentence with its numbers, and what would help.
        code: a word for programs.
        field: what it is about, as the client wrote it.
        retry_after_seconds: when it may be tried again.
    """

    status: int
    message: str
    code: str
    field: str | None = None
    retry_after_seconds: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's head says of it."""
        return {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}


class TurnedAway(Exception):
    """A request that nobody looks at further."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


ErrorBody = Callable[[Problem], dict[str, Any]]

# The first that fits stands.
_KINDS: tuple[tuple[type[R1MacError], int, str], ...] = (
    (errors.PromptTooLong, 400, "context_length_exceeded"),
    (errors.DoesNotFit, 503, "does_not_fit"),
    (errors.UnknownModel, 404, "model_not_found"),
    (errors.BadAnswerFormat, 400, "invalid_value"),
    (errors.RefusedConversation, 400, "invalid_value"),
    (errors.AccessDenied, 401, "access_denied"),
)


def problem_of(error: Exception) -> Problem:
    """Return what *error* is to a client. What is nobody's doing but ours is a 500."""
    if isinstance(error, TurnedAway):
        return error.problem
    if isinstance(error, BadRequest):
        return Problem(status=400, message=error.problem, code="invalid_value", field=error.field)
    if not isinstance(error, R1MacError):
        return Problem(status=500, message="something broke in r1mac: its log says what", code="internal_error")
    status, code = next(((status, code) for kind, status, code in _KINDS if isinstance(error, kind)), (500, "failed"))
    later = _RETRY_AFTER_SECONDS if status == 503 else None  # noqa: PLR2004
    if isinstance(error, Refused):
        status, code, later = 503, "overloaded", error.retry_after_seconds
    message = f"{error.problem} ({error.hint})" if error.hint else error.problem
    return Problem(status=status, message=message, code=code, retry_after_seconds=later)


def openai_body(problem: Problem) -> dict[str, Any]:
    """Return OpenAI's error: https://platform.openai.com/docs/guides/error-codes."""
    return {
        "error": {
            "message": problem.message,
            "type": _OPENAI_TYPES.get(problem.status, "server_error" if problem.status >= 500 else _INVALID),  # noqa: PLR2004
            "param": problem.field,
            "code": problem.code,
        }
    }


_INVALID = "invalid_request_error"
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
