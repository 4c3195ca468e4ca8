"""Where formulas are in Markdown: rules for markdown-it.

Pandoc's rule for a dollar keeps prices text: an opening one has no space behind it, a closing one none before it and no
digit behind it. https://pandoc.org/MANUAL.html#extension-tex_math_dollars
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from r1mac.server.formulas import MOST_CHARACTERS, formula_html

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

_CLOSING = {"\\[": "\\]", "$$": "$$", "\\(": "\\)"}
_BEHIND = " \t.,;:"  # what may follow on the line of a formula that has lines of its own


def add_formulas(markdown: "MarkdownIt") -> None:
    r"""Teach *markdown* ``\[…\]`` and ``$$…$$`` on lines of their own, and these, ``\(…\)`` and ``$…$`` in text."""
    interrupted = ["paragraph", "reference", "blockquote", "list"]
    markdown.block.ruler.before("fence", "formula_block", _block, {"alt": interrupted})
    markdown.inline.ruler.before("escape", "formula", _inline)
    markdown.add_render_rule("formula_block", _render)
    markdown.add_render_rule("formula", _render)


def _block(state: "StateBlock", start_line: int, end_line: int, silent: bool) -> bool:
    """Take the lines of a formula. One that is not closed yet runs to the end of the text."""
    begin = state.bMarks[start_line] + state.tShift[start_line]
    closing = _CLOSING.get(state.src[begin : begin + 2])
    if closing not in {"\\]", "$$"} or state.is_code_block(start_line):
        return False
    end = _end_of_block(state, begin + 2, closing, state.eMarks[end_line - 1])
    if end is None:
        return False
    if silent:
        return True
    line = start_line
    while state.eMarks[line] < end:
        line += 1
    state.line = line + 1
    text = state.getLines(start_line, line + 1, state.blkIndent, False).strip().rstrip(_BEHIND)
    token = state.push("formula_block", "", 0)
    token.map = [start_line, state.line]
    token.meta = {"block": True, "closed": text.endswith(closing)}
    token.content = text.removesuffix(closing)[2:]
    return True


def _end_of_block(state: "StateBlock", begin: int, closing: str, end: int) -> int | None:
    """Return where the formula that begins at *begin* ends; None if it is none, or has text behind it."""
    src, bound = state.src, begin + MOST_CHARACTERS
    blank = src.find("\n\n", begin, min(bound, end))
    found = src.find(closing, begin, min(bound, end) if blank < 0 else blank)
    if found < 0:
        return end if blank < 0 and end < bound and src[begin:end].strip() else None
    line_end = src.find("\n", found)
    behind = src[found + 2 : line_end if line_end >= 0 else len(src)]
    return found + 2 if src[begin:found].strip() and not behind.strip(_BEHIND) else None


def _inline(state: "StateInline", silent: bool) -> bool:
    src, begin = state.src, state.pos
    if src[begin] not in "\\$":
        return False
    opening = src[begin : begin + 2]
    closing = _CLOSING.get(opening) or ("$" if opening[0] == "$" else None)
    if closing is None:
        return False
    width = len(closing)
    end = _end_of_inline(src, begin + width, closing, min(state.posMax, begin + MOST_CHARACTERS))
    if end is None:
        return False
    if not silent:
        token = state.push("formula", "", 0)
        token.content = src[begin + width : end]
        token.meta = {"block": opening in {"\\[", "$$"}, "closed": True}
    state.pos = end + width
    return True


def _end_of_inline(src: str, begin: int, closing: str, bound: int) -> int | None:
    end = src.find(closing, begin, bound)
    if closing != "$":
        return end if end > begin else None
    while end > 0 and src[end - 1] == "\\":
        end = src.find("$", end + 1, bound)
    if end <= begin or src[begin].isspace() or src[end - 1].isspace() or src[end + 1 : end + 2].isdigit():
        return None
    return end


def _render(_: object, tokens: "Sequence[Token]", at: int, _options: Mapping[str, Any], _env: Mapping[str, Any]) -> str:
    token = tokens[at]
    return formula_html(token.content, block=token.meta["block"], closed=token.meta["closed"])
