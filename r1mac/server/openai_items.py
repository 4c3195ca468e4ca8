"""The items of a Responses request as a conversation.

Thoughts of earlier turns are skipped, as R1's template leaves them out.
"""

from collections.abc import Iterator

from r1mac.engine.request import Message, ToolCall
from r1mac.server import openai_asked
from r1mac.server.fields import Fields


def messages(fields: Fields) -> Iterator[Message]:
    """Yield the conversation that ``instructions`` and ``input`` say.

    Raises:
        BadRequest: an item is of a kind that r1mac has not, or there is none.
    """
    instructions = fields.text("instructions")
    if instructions:
        yield Message("system", instructions)
    said = fields.values.get("input")
    if isinstance(said, str):
        yield Message("user", said)
        return
    found = list(_joined(fields.objects("input")))
    if not found:
        raise fields.bad("input", "is missing" if said is None else "must have at least one message")
    yield from found


def _joined(items: Iterator[Fields]) -> Iterator[Message]:
    """Yield the messages of *items*; what the model said and called without a break is one turn."""
    turn: Message | None = None
    for item in items:
        message = _message(item)
        if message is None:
            continue
        if turn is not None and message.role == "assistant":
            turn = Message("assistant", turn.text + message.text, tool_calls=(*turn.tool_calls, *message.tool_calls))
            continue
        if turn is not None:
            yield turn
        turn = message if message.role == "assistant" else None
        if turn is None:
            yield message
    if turn is not None:
        yield turn


def _message(item: Fields) -> Message | None:
    """Return what an item of the input says, or None for a thought."""
    match item.text("type"):
        case None | "message":
            return openai_asked.message(item)
        case "reasoning":
            return None
        case "function_call":
            call = ToolCall(
                id=item.needed_text("call_id"),
                name=item.needed_text("name"),
                arguments=item.text("arguments") or "{}",
            )
            return Message("assistant", "", tool_calls=(call,))
        case "function_call_output":
            text = openai_asked.content(item, "output")
            if text is None:
                raise item.bad("output", "is missing")
            return Message("tool", text, tool_call_id=item.needed_text("call_id"))
        case "item_reference":
            raise item.bad("type", "is «item_reference», and nothing is stored here that it could name")
        case kind:
            raise item.bad("type", f"is «{(kind or '')[:40]}», which r1mac has not")
