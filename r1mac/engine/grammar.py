"""What an answer must look like, in the terms of llguidance, which holds a model to it.

llguidance (MIT, guidance-ai) is what vLLM, SGLang and llama.cpp constrain with. It is imported only where an answer has
a format. Without mlx: a format is checked before any weight is read.
"""

import json
from typing import TYPE_CHECKING

from r1mac.engine.request import AnswerFormat
from r1mac.errors import BadAnswerFormat

if TYPE_CHECKING:
    from llguidance import LLMatcher

_NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}
_HINTS = {
    "json_schema": "https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md lists what can be used",
    "regex": "write it as https://docs.rs/regex/latest/regex/#syntax says: no look-around, no back references",
    "grammar": "write it as https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md says",
}
# JSON allows blanks without end between any two words, and a small model may write nothing else.
_BLANKS = r"[ \t\n\r]{1,32}"
_LONGEST_REASON = 240


def check(answer_format: AnswerFormat) -> None:
    """Do nothing, if an answer can be held to *answer_format*.

    Raises:
        BadAnswerFormat: it is not written rightly, asks for what llguidance cannot do, or nothing satisfies it.
    """
    from llguidance import LLMatcher

    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar_text(answer_format))
    if failed:
        raise bad_format(answer_format, messages[0])


def grammar_text(answer_format: AnswerFormat) -> str:
    """Return the grammar as llguidance reads it, not yet checked but for a schema being JSON.

    Raises:
        BadAnswerFormat: the schema is no JSON object, or the text is no text.
    """
    from llguidance import LLMatcher

    text = answer_format.text
    try:
        if answer_format.kind == "regex":
            return str(LLMatcher.grammar_from_regex(text))
        if answer_format.kind == "grammar":
            return str(LLMatcher.grammar_from_lark(text))
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"it is not JSON: {error}" if answer_format.kind == "json_schema" else str(error)
        raise bad_format(answer_format, reason) from error
    if schema is not True and not isinstance(schema, dict):
        raise bad_format(answer_format, f"it must be an object, {{}} for any JSON, and is {text.strip()}")
    # true is the schema of everything, too.
    return str(
        LLMatcher.grammar_from_json_schema("{}" if schema is True else text, overrides={"whitespace_pattern": _BLANKS})
    )


def matcher_error(matcher: "LLMatcher", answer_format: AnswerFormat) -> BadAnswerFormat | None:
    """Return what made *matcher* give up, or None."""
    return bad_format(answer_format, matcher.get_error()) if matcher.is_error() else None


def bad_format(answer_format: AnswerFormat, reason: str) -> BadAnswerFormat:
    """Return the error for a format that cannot be used, with the library's reason on one line."""
    # An argument that is not UTF-8 reaches Python as lone surrogates, which no terminal takes.
    line = " ".join(reason.encode("utf-8", "replace").decode().split()).rstrip(".")
    if len(line) > _LONGEST_REASON:
        line = line[:_LONGEST_REASON] + " …"
    return BadAnswerFormat(
        f"the {_NAMES[answer_format.kind]} for the answer cannot be used: {line}", hint=_HINTS[answer_format.kind]
    )
