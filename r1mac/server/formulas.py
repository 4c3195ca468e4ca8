"""A formula in TeX to MathML that is safe to put into a page."""

import re
from collections.abc import Iterator
from functools import lru_cache
from html import escape, unescape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

# Longer than any formula of a textbook; the time of a conversion grows with the length.
MOST_CHARACTERS = 4000
_MOST_DEPTH = 100

# latex2mathml knows one environment of each kind.
_ENVIRONMENT = re.compile(r"\\(begin|end)\{(\w+\*?)\}")
_KNOWN_AS = {
    **dict.fromkeys(("align", "aligned", "split", "flalign", "flalign*", "eqnarray", "eqnarray*"), "align*"),
    **dict.fromkeys(("gather", "gather*", "gathered", "multline", "multline*"), "matrix"),
    **dict.fromkeys(("equation", "equation*", "displaymath", "math"), ""),
    "dcases": "cases",
}
_COMMAND = re.compile(r"\\(?:nonumber|notag|displaylimits|limits)(?![A-Za-z])|\\label\{[^{}]*\}")

# What MathML has and latex2mathml writes; ``href``, ``style``, ``class`` and whatever else a formula may ask for go.
_ELEMENTS = frozenset(
    "math mrow mi mn mo mtext mspace ms mfrac msqrt mroot mstyle merror mpadded mphantom menclose msub msup "  # noqa: SIM905
    "msubsup munder mover munderover mmultiscripts mprescripts none mtable mtr mtd".split()
)
_ATTRIBUTES = frozenset(
    "accent accentunder columnalign columnlines columnspacing depth display displaystyle fence form height "  # noqa: SIM905
    "linethickness lspace mathcolor mathvariant maxsize minsize movablelimits notation rowlines rowspacing rspace "
    "scriptlevel separator stretchy symmetric voffset width".split()
)
_VALUE = re.compile(r"[\w.+#% -]*", re.ASCII)
_NEGATIVE_SPACES = {
    "negativethinmathspace": "-0.167em",
    "negativemediummathspace": "-0.222em",
    "negativethickmathspace": "-0.278em",
}
# Operators whose limits stand above and below them where there is room.
_WITH_LIMITS = frozenset(
    "∑ ∏ ∐ ⋃ ⋂ ⨁ ⨂ ⨀ ⨄ ⨆ ⋁ ⋀ lim max min sup inf limsup liminf gcd Pr det argmax argmin".split()  # noqa: RUF001, SIM905
)
_ABOVE_AND_BELOW = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}
_BAR = "―"  # what latex2mathml draws over and under with, and no browser stretches


def formula_html(tex: str, *, block: bool, closed: bool = True) -> str:
    """Return MathML for *tex*, or *tex* itself as code where it is not understood, or not *closed* yet.

    *block* gives it a line of its own.
    """
    mathml = _mathml(tex.strip(), block) if closed and len(tex) <= MOST_CHARACTERS else None
    inner = mathml or f'<code class="tex">{escape(tex.strip())}</code>'
    # A formula wider than the page is scrolled by itself, with the keyboard too.
    return f'<span class="formula" tabindex="0">{inner}</span>' if block else inner


@lru_cache(maxsize=2048)
def _mathml(tex: str, block: bool) -> str | None:
    from latex2mathml.converter import convert_to_element

    known = _COMMAND.sub("", _ENVIRONMENT.sub(_known_environment, tex))
    try:
        element = convert_to_element(known, display="block" if block else "inline")
        return "".join(_serialized(element, _MOST_DEPTH))
    except Exception:  # noqa: BLE001 - it raises what it likes, IndexError and RecursionError among it
        return None


def _known_environment(match: re.Match[str]) -> str:
    name = _KNOWN_AS.get(match[2], match[2])
    return f"\\{match[1]}{{{name}}}" if name else ""


def _serialized(element: "Element", depth: int) -> Iterator[str]:
    """Yield *element* as text: nothing gets through that is not written here.

    latex2mathml writes entities into its texts and relies on nobody escaping them; both are put right.
    """
    tag = element.tag if element.tag in _ELEMENTS else "mrow"
    children = list(element)
    if depth == 0:
        raise RecursionError
    text = unescape(element.text or "")
    if children and _text_of(children[0]) in _WITH_LIMITS:
        tag = _ABOVE_AND_BELOW.get(tag, tag)
    attributes = {name: value for name, value in element.attrib.items() if name in _ATTRIBUTES}
    if tag == "menclose" and attributes.get("notation") == "box":
        tag, attributes = "mrow", {"class": "boxed"}  # which browsers draw by themselves nowhere but in Safari
    elif tag == "mo" and text == _BAR:
        text, attributes = "¯", {"stretchy": "true"}
    elif tag == "mo" and text in _WITH_LIMITS:
        attributes["movablelimits"] = "true"
    yield f"<{tag}{''.join(_attributes(attributes))}>{escape(text, quote=False)}"
    for child in children:
        yield from _serialized(child, depth - 1)
    yield f"</{tag}>"


def _attributes(attributes: dict[str, str]) -> Iterator[str]:
    for name, value in attributes.items():
        if _VALUE.fullmatch(value):
            yield f' {name}="{_NEGATIVE_SPACES.get(value, value)}"'


def _text_of(element: "Element") -> str:
    """Return the text of an operator, or of the one within an element that only styles it."""
    if element.tag == "mstyle" and len(element) == 1:
        return _text_of(element[0])
    return unescape(element.text or "") if element.tag == "mo" else ""
