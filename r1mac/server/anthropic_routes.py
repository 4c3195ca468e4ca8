"""The routes of Anthropic's API."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from r1mac.errors import R1MacError
from r1mac.server import anthropic
from r1mac.server.asked import BadRequest
from r1mac.server.bodies import read_object
from r1mac.server.dialect import Dialect
from r1mac.server.replies import Replies, error_response
from r1mac.server.sse import as_event

DIALECT = Dialect(
    id_prefix="msg_",
    parse=anthropic.parse,
    writer=anthropic.Writer,
    error_body=anthropic.error_body,
    # The API's own sign of life; its clients skip comments too, but some wait for events.
    keep_alive=as_event(anthropic.PING),
)


def routes(replies: Replies) -> list[Route]:
    """Return the routes that answer with *replies*."""

    async def count_tokens(request: Request) -> Response:
        try:
            asked = anthropic.parse(await read_object(request))
            return JSONResponse({"input_tokens": await replies.worker.count_tokens(asked)})
        except (BadRequest, R1MacError) as error:
            return error_response(error, anthropic.error_body)

    return [
        Route("/v1/messages", replies.endpoint(DIALECT), methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    ]
