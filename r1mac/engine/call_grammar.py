"""An answer that can be nothing but calls of functions: the grammar for it, in llguidance's Lark.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from r1mac.engine.request import AnswerFormat

# DeepSeek's marks, and those of Hermes.
_MARK = re.compile(r"(<｜[^<>\s]+?｜>|</?tool_call>)")  # noqa: RUF001 - the bars of DeepSeek's own tokens
# JSON allows blanks without end between any two words, and a small model may write nothing else.
_BLANKS = r"[ \n]{1,16}"
# A small model may find no end.
_MOST_CALLS = 16


def calls_format(
    tools: Sequence[str],
    must_call: bool | str,
    *,
    before: str,
    call: tuple[str, str, str],
    between: str,
    after: str,
    is_token: Callable[[str], bool],
) -> AnswerFormat:
    """Return the format of an answer that calls one of the functions at least; of the named one, once.

    Args:
        tools: the functions, each as JSON in OpenAI's shape.
        must_call: True for any of them, or a name.
        before: what stands before all calls.
        call: what stands before a call's name, between that and its arguments, and behind them.
        between: what stands between two calls.
        after: what stands behind all calls.
        is_token: whether a mark is a token of the model's; else it is written as text.
    """
    functions = [json.loads(tool)["function"] for tool in tools]
    if isinstance(must_call, str):
        functions = [function for function in functions if function["name"] == must_call] or functions

    def said(text: str) -> str:
        return " ".join(_terms(text, is_token)) or '""'

    head, middle, tail = call
    more = "" if isinstance(must_call, str) else f"({said(between)} call){{0,{_MOST_CALLS - 1}}}"
    rules = [
        f"calls: {said(before)} call {more} {said(after)}",
        f"call: {said(head)} ({' | '.join(f'f{at}' for at in range(len(functions)))}) {said(tail)}",
        *(
            f"f{at}: {said(function['name'] + middle)} %json {json.dumps(_arguments(function))}"
            for at, function in enumerate(functions)
        ),
    ]
    return AnswerFormat(kind="grammar", text="\n".join(["start: calls", *rules]))


def _terms(text: str, is_token: Callable[[str], bool]) -> Iterator[str]:
    """Yield what *text* is in a grammar: tokens by their names, all else as quoted text."""
    plain = ""
    for part in _MARK.split(text):
        if _MARK.fullmatch(part) and is_token(part):
            if plain:
                yield json.dumps(plain, ensure_ascii=False)
            plain = ""
            yield part
        else:
            plain += part
    if plain:
        yield json.dumps(plain, ensure_ascii=False)


def _arguments(function: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a function's arguments, which are an object whatever it says."""
    schema = function.get("parameters")
    schema = schema if isinstance(schema, dict) else {}
    return {"type": "object", **schema, "x-guidance": {"whitespace_pattern": _BLANKS}}
