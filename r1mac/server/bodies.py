"""A request's body to a JSON object, or a clear refusal."""

import json
from typing import Any

from starlette.requests import Request

from r1mac.server.asked import BadRequest
from r1mac.server.wire_errors import Problem, TurnedAway

# What a page of another site may send without asking this server first; a browser says where it comes from.
# https://fetch.spec.whatwg.org/#cors-safelisted-request-header
_BROWSER_HEADERS = ("origin", "sec-fetch-site")


async def read_object(request: Request, *, any_type: bool = False) -> dict[str, Any]:
    """Return the JSON object that a request carries.

    Args:
        request: whose body is read.
        any_type: whether a program that is no browser may leave out that it is JSON, as curl does.

    Raises:
        BadRequest: it is no JSON object, or one that no text can hold.
        TurnedAway: it does not say that it is JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    lenient = any_type and not any(name in request.headers for name in _BROWSER_HEADERS)
    if not is_json and not lenient:
        message = f"the body must be JSON, with the header «Content-Type: application/json», and is «{kind[:80]}»"
        raise TurnedAway(Problem(status=415, message=message, code="unsupported_media_type"))
    return parse_object(await request.body())


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in *body*.

    Raises:
        BadRequest: there is none; or it nests too deep, has a number that JSON has not, or half a character.
    """
    try:
        value = json.loads(body, parse_constant=_no_number)
        if b"\\u" in body:
            # Half of a surrogate pair is JSON, and can be no text.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise BadRequest("the body nests too deep") from error
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
