"""Markdown with formulas, as models write it, to HTML that is safe to put into a page.

Raw HTML is text, links open nothing but ``http``, ``https`` and ``mailto``, and an image is a link: a page that shows
an answer asks no other computer for anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.renderer import RendererHTML
    from markdown_it.rules_core import StateCore
    from markdown_it.token import Token

_SCHEMES = frozenset({"http", "https", "mailto"})
# Deeper quotes and lists are left out, so that no text exhausts the stack.
_MOST_NESTING = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A text as HTML, cut before its last block: what stands before it stays as it is while the text grows.

    Attributes:
        settled_html: all blocks but the last.
        settled_lines: how many lines of the text they are.
        open_html: the last block.
    """

    settled_html: str
    settled_lines: int
    open_html: str

    @property
    def html(self) -> str:
        """The whole text."""
        return self.settled_html + self.open_html


def render(text: str) -> Rendered:
    r"""Return *text*, which is Markdown with TeX in ``$…$``, ``$$…$$``, ``\(…\)`` and ``\[…\]``, as HTML.

    Takes time in proportion to the length, whatever the text is (``tests/unit/test_server_markup.py``).
    """
    markdown = _markdown()
    environment: dict[str, Any] = {}
    tokens = markdown.parse(text, environment)
    last = max((at for at, token in enumerate(tokens) if token.level == 0 and token.nesting >= 0), default=0)
    lines = tokens[last].map if tokens else None
    return Rendered(
        settled_html=markdown.renderer.render(tokens[:last], markdown.options, environment),
        settled_lines=lines[0] if lines else 0,
        open_html=markdown.renderer.render(tokens[last:], markdown.options, environment),
    )


@cache
def _markdown() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    from r1mac.server.markup_formulas import add_formulas

    markdown = MarkdownIt("commonmark", {"html": False, "maxNesting": _MOST_NESTING})
    markdown.enable(["table", "strikethrough"])
    # The way that markdown-it has for it.
    markdown.validateLink = _is_harmless  # type: ignore[method-assign]
    add_formulas(markdown)
    markdown.core.ruler.push("tasks", _mark_tasks)
    for kind, rule in _RULES.items():
        markdown.add_render_rule(kind, rule)
    return markdown


def _is_harmless(url: str) -> bool:
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        return False
    return scheme in _SCHEMES


def _mark_tasks(state: "StateCore") -> None:
    """Turn ``[ ]`` and ``[x]`` at the beginning of a list's item into a box."""
    for item, _, token in zip(state.tokens, state.tokens[1:], state.tokens[2:], strict=False):
        if item.type == "list_item_open" and token.type == "inline" and token.children:
            first = token.children[0]
            if first.type == "text" and (box := _BOXES.get(first.content[:4])):
                item.attrSet("class", "task")
                first.content = f"{box} {first.content[4:]}"


_BOXES = {"[ ] ": "☐", "[x] ": "☑", "[X] ": "☑"}


def _fence(
    _: "RendererHTML", tokens: "Sequence[Token]", at: int, _options: Mapping[str, Any], _env: Mapping[str, Any]
) -> str:
    from r1mac.server.highlight import highlighted

    token = tokens[at]
    language = token.info.split(maxsplit=1)[0] if token.info.strip() else ""
    label = f'<span class="language">{escape(language)}</span>' if language else ""
    code = highlighted(token.content, language)
    return f'<div class="code">{label}<pre tabindex="0"><code>{code}</code></pre></div>\n'


def _link_open(
    renderer: "RendererHTML", tokens: "Sequence[Token]", at: int, options: Any, env: Mapping[str, Any]
) -> str:
    tokens[at].attrSet("rel", "noopener noreferrer")
    tokens[at].attrSet("target", "_blank")
    return renderer.renderToken(tokens, at, options, env)  # type: ignore[arg-type]


def _image(
    _: "RendererHTML", tokens: "Sequence[Token]", at: int, _options: Mapping[str, Any], _env: Mapping[str, Any]
) -> str:
    url = str(tokens[at].attrs.get("src", ""))
    return (
        f'<a href="{escape(url)}" rel="noopener noreferrer" target="_blank">{escape(tokens[at].content or "image")}</a>'
    )


def _table_open(
    _: "RendererHTML", _tokens: "Sequence[Token]", _at: int, _options: Mapping[str, Any], _env: Mapping[str, Any]
) -> str:
    # A table wider than the page is scrolled by itself, with the keyboard too.
    return '<div class="table" tabindex="0"><table>\n'


def _table_close(
    _: "RendererHTML", _tokens: "Sequence[Token]", _at: int, _options: Mapping[str, Any], _env: Mapping[str, Any]
) -> str:
    return "</table></div>\n"


def _cell_open(
    renderer: "RendererHTML", tokens: "Sequence[Token]", at: int, options: Any, env: Mapping[str, Any]
) -> str:
    # The page's policy forbids styles in the text.
    if style := tokens[at].attrs.pop("style", None):
        tokens[at].attrSet("class", str(style).removeprefix("text-align:"))
    return renderer.renderToken(tokens, at, options, env)  # type: ignore[arg-type]


_RULES = {
    "fence": _fence,
    "code_block": _fence,
    "link_open": _link_open,
    "image": _image,
    "table_open": _table_open,
    "table_close": _table_close,
    "th_open": _cell_open,
    "td_open": _cell_open,
}
