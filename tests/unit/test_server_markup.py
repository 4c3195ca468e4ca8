"""What a model writes becomes HTML that shows what it meant and can do nothing."""

import html.parser
import time
from xml.etree import ElementTree as ET

import pytest

from r1mac.server.formulas import formula_html
from r1mac.server.markup import render

ALLOWED = frozenset(
    "a blockquote br code del div em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong table tbody td th thead tr ul "  # noqa: SIM905
    "math mfrac mi mn mo mover mroot mrow mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder "
    "munderover".split()
)


class Seen(html.parser.HTMLParser):
    """Collects what a browser would make of a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_data(self, data):
        self.text += data

    @property
    def links(self) -> list[str | None]:
        return [value for name, value in self.attributes if name == "href"]


def seen(text: str) -> Seen:
    return Seen(render(text).html)


def formulas(text: str) -> list[ET.Element]:
    """Return the MathML of *text*, read by a strict reader."""
    whole = render(text).html
    return [ET.fromstring(f"<math{part.split('</math>')[0]}</math>") for part in whole.split("<math")[1:]]


def shown(element: ET.Element) -> str:
    return "".join(element.itertext())


# Markdown ------------------------------------------------------------------------------------------


def test_prose_lists_and_code_are_what_markdown_says():
    page = seen("# Title\n\nSome **bold**, *soft* and ~~gone~~ `code`.\n\n1. one\n2. two\n\n> quoted\n")

    assert page.tags == ["h1", "p", "strong", "em", "s", "code", "ol", "li", "li", "blockquote", "p"]


def test_a_table_keeps_its_alignment_without_styles():
    page = render("| a | b |\n|--:|:-:|\n| 1 | **2** |\n").html

    assert '<td class="right">1</td>' in page
    assert '<td class="center"><strong>2</strong></td>' in page
    assert "style=" not in page


def test_tasks_are_ticked():
    page = seen("- [x] done\n- [ ] open\n- [link](https://a.example)\n")

    assert page.text.split() == ["☑", "done", "☐", "open", "link"]


def test_code_is_marked_in_its_language_and_is_whole():
    code = 'def f(x):\n    return "<b>" if x < 1 else None\n'

    page = seen(f"```python\n{code}```\n")

    assert ("class", "language") in page.attributes
    assert ("class", "k") in page.attributes
    assert page.text.strip().removeprefix("python") == code.rstrip()


@pytest.mark.parametrize("language", ["", "brainfuck", "<script>", "python3.12"])
def test_code_of_any_other_language_is_plain(language):
    page = seen(f"```{language}\n<script>alert(1)</script> & x\n```\n")

    assert page.tags.count("span") == (1 if language else 0)
    assert "<script>alert(1)</script> & x" in page.text


# Formulas ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "display"),
    [
        (r"so \(x^2\) is", "inline"),
        (r"so $x^2$ is", "inline"),
        (r"so \[x^2\] is", "block"),
        (r"so $$x^2$$ is", "block"),
        ("so\n\\[\nx^2\n\\]\nis", "block"),
        ("so\n$$\nx^2\n$$\nis", "block"),
        ("- so\n  \\[\n  x^2\n  \\]\n  is", "block"),
        ("> so\n> \\[x^2\\]", "block"),
        ("| a |\n|---|\n| $x^2$ |", "inline"),
        ("**so \\(x^2\\)**", "inline"),
    ],
)
def test_a_formula_is_one_wherever_it_stands(text, display):
    (formula,) = formulas(text)

    assert formula.get("display") == display
    assert [child.tag for child in formula.find("mrow")] == ["msup"]


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5, and $10 for two.",
        "It costs 5$ or 10$.",
        "from $5-$10",
        r"\$x\$ and `$x$` and `\(x\)`",
        "```\n$x$ \\[y\\]\n```",
        "a $ b $ c",
        r"an empty one \(\) or $$$$",
    ],
)
def test_prices_and_code_are_no_formulas(text):
    assert formulas(text) == []


def test_lines_of_a_formula_are_not_taken_for_markdown():
    (formula,) = formulas("\\[\na\n= b\n- c\n+ d\n\\]")

    assert shown(formula) == "a=b−c+d"


def test_aligned_equations_stand_below_each_other():
    (formula,) = formulas("\\[\\begin{aligned} a &= b \\\\ &= \\boxed{42} \\end{aligned}\\]")

    rows = formula.findall(".//mtr")
    assert [shown(row) for row in rows] == ["a=b", "=42"]
    assert [cell.get("columnalign") for cell in rows[0]] == ["right", "left"]
    assert formula.find(".//mrow[@class='boxed']") is not None


def test_limits_stand_above_and_below():
    (formula,) = formulas(r"$$\sum_{i=1}^n i + \lim_{x \to 0} x$$")

    assert [child.tag for child in formula.find("mrow")][:1] == ["munderover"]
    assert formula.find(".//munder/mo").get("movablelimits") == "true"


@pytest.mark.parametrize("tex", ["{", r"\frac", r"x^2^3", "{" * 2000, r"\left(" * 400, "x" * 5000, r"\begin{matrix}"])
def test_a_formula_that_is_none_is_shown_as_it_stands(tex):
    made = Seen(formula_html(tex, block=True))

    assert made.text == tex
    assert "code" in made.tags
    assert "math" not in made.tags


# While it is written ---------------------------------------------------------------------------------


def test_what_is_settled_stays_as_it_is_while_the_text_grows():
    text = "# One\n\ntwo $x$\n\n| a |\n|---|\n| 1 |\n| 2 |\n\n```python\nx = 1\n\ny = 2\n```\n\n1. a\n2. b\n\nend\n"
    kept, lines = "", 0
    for end in range(1, len(text) + 1):
        rest = "\n".join(text[:end].split("\n")[lines:])
        part = render(rest)
        kept, lines = kept + part.settled_html, lines + part.settled_lines

    assert kept + part.open_html == render(text).html


def test_a_formula_that_is_not_closed_yet_is_shown_as_it_stands():
    growing = render("so\n\n\\[\n\\frac{a}{")

    assert growing.settled_html == "<p>so</p>\n"
    assert Seen(growing.open_html).text == "\\frac{a}{"


# Safety ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "a <b onclick=alert(1)>b</b> <svg/onload=alert(1)>",
        "<!-- --><iframe src='https://evil.example'></iframe>",
        "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](java\tscript:alert(1)) [d](\x01javascript:alert(1))",
        "[a](data:text/html,<script>alert(1)</script>) [b](vbscript:x) [c](file:///etc/passwd)",
        "[a](/r1mac/state) [b](//evil.example/x) [c](?x) [d](#x)",
        "<javascript:alert(1)> <data:text/html,x>",
        "[a]: javascript:alert(1)\n\n[a]",
        "[a](&#106;avascript:alert(1)) [b](&#x6A&#x61vascript:alert(1))",
        "![x](https://evil.example/x.png) ![x](javascript:alert(1)) !['\"><script>](https://a.example)",
        "```'><script>alert(1)</script>\nx\n```",
        "```python\n</code></pre><script>alert(1)</script>\n```",
        "| <script>alert(1)</script> |\n|---|\n| <img src=x onerror=alert(1)> |",
        r"\(\text{<script>alert(1)</script>}\) $\mbox{<img src=x onerror=alert(1)>}$",
        r"\[\href{javascript:alert(1)}{x} \style{position:fixed}{x} \class{a}{x} \cssId{b}{x}\]",
        r"$\color{red\" onclick=alert(1)}{x}$ $\text{&lt;script&gt;alert(1)&lt;/script&gt;}$",
        "$\\unicode{x3c}script\\unicode{x3e}$ \\(<script>\\) $\\frac{<}{>}$",
        "$$<script>\n\n$$ \\[ <script>alert(1)</script>",
    ],
)
def test_nothing_in_a_text_can_act(text):
    page = seen(text)

    assert set(page.tags) <= ALLOWED
    names = {name for name, _ in page.attributes}
    assert not any(name.startswith("on") or name in {"style", "src", "id"} for name in names)
    assert all(str(link).startswith(("https://", "http://", "mailto:")) for link in page.links)


def test_a_link_tells_the_other_side_nothing():
    page = seen("[a](https://a.example/x?y=1&z=2) <mailto:me@a.example> ![picture](https://b.example/p.png)")

    assert page.links == ["https://a.example/x?y=1&z=2", "mailto:me@a.example", "https://b.example/p.png"]
    assert page.attributes.count(("rel", "noopener noreferrer")) == 3
    assert "picture" in page.text


# Time ------------------------------------------------------------------------------------------------

# The slowest takes a second and a half; what is quadratic takes minutes.
BOUND_SECONDS = 15


@pytest.mark.parametrize(
    "piece",
    ["*", "$", "[", "![", "[a](", "> ", "- ", "_a", "`", "`a``b", "\\[\n", "$$ a\n", "\\(", "<a ", "|a", "&", "\n"],
)
def test_hostile_text_takes_bounded_time(piece):
    text = (piece * 10_000)[:10_000]
    begun = time.process_time()

    render(text)

    assert time.process_time() - begun < BOUND_SECONDS


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{'  ' * depth}- a\n" for depth in range(300)),
        ">" * 5000 + "a",
        "```python\n" + "(" * 9000 + "\n```",
        "```python\n" + "'" * 15000 + "\n```",
        "```sql\n" + "/*" * 9000 + "\n```",
        " ".join(f"$x_{{{number}}}$" for number in range(1000)),
    ],
    ids=["deep list", "deep quote", "parentheses", "quotes", "comments", "many formulas"],
)
def test_deep_and_dense_text_takes_bounded_time(text):
    begun = time.process_time()

    render(text)

    assert time.process_time() - begun < BOUND_SECONDS
