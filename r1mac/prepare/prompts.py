"""A file of prompts, to be answered one by one or side by side."""

import json
from typing import Any, NamedTuple

from r1mac.engine.request import Message
from r1mac.errors import BadPrompts

_ROLES = ("system", "user", "assistant")


class Asked(NamedTuple):
    """One conversation of a file.

    Attributes:
        line: where it stands, counted from 1.
        name: what the file calls it, if it does.
    """

    line: int
    messages: tuple[Message, ...]
    name: str | None = None


def parse_prompts(text: str, where: str) -> list[Asked]:
    """Return the conversations of a file that has one a line.

    A line is a prompt, or a JSON object with ``prompt`` or ``messages`` (role and content, as OpenAI's) and maybe an
    ``id``. Empty lines are left out.

    Raises:
        BadPrompts: a line is not like that, or there is none.
    """
    asked = [_asked(number, line, where) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not asked:
        raise BadPrompts(f"{where} has no prompt", hint="write one prompt on each line")
    return asked


def _asked(number: int, line: str, where: str) -> Asked:
    if not line.lstrip().startswith("{"):
        return Asked(number, (Message("user", line),))
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise _bad(number, where, f"begins like JSON and is none: {error.msg}") from error
    unknown = sorted(set(data) - {"prompt", "messages", "id"})
    if unknown:
        raise _bad(number, where, f"has {unknown[0]!r}, which r1mac does not know")
    if ("prompt" in data) == ("messages" in data):
        raise _bad(number, where, "must have either prompt or messages")
    name = data.get("id")
    messages = data["messages"] if "messages" in data else [{"role": "user", "content": data["prompt"]}]
    if not isinstance(messages, list) or not messages:
        raise _bad(number, where, "has messages that are not a list of them")
    return Asked(number, tuple(_message(item, number, where) for item in messages), None if name is None else str(name))


def _message(item: Any, number: int, where: str) -> Message:
    role = item.get("role") if isinstance(item, dict) else None
    content = item.get("content") if isinstance(item, dict) else None
    if role not in _ROLES or not isinstance(content, str):
        raise _bad(number, where, f"has a message without a role of {', '.join(_ROLES)} or without text")
    return Message(role, content)


def _bad(number: int, where: str, what: str) -> BadPrompts:
    return BadPrompts(
        f"line {number} of {where} {what}", hint='a line is a prompt, or JSON such as {"id": "1", "prompt": "Why?"}'
    )
