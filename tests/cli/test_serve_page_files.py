"""What the page is made of, over real HTTP: its files, its policy, and texts as HTML."""

import re
from collections.abc import Iterator

import pytest

from tests.http_server import Reciter, Served, served
from tests.http_talk import ask

MIB = 1024**2


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[Served]:
    with served(Reciter(lambda _: "Hm.</think>Yes.")) as server:
        yield server


def test_the_page_and_all_that_it_names_is_there_and_may_ask_nobody_else(server):
    """Whatever a file names is served by the same policy: nothing from elsewhere, nothing written into the page."""
    wanted, found = ["/"], {}
    while wanted:
        path = wanted.pop()
        answer = ask(server.port, path)
        found[path] = answer.headers["content-type"]
        assert answer.status == 200, path
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert set(policy.values()) == {"'none'", "'self'"}
        text = answer.body.decode()
        named = re.findall(r'(?:src|href)="(/[^"]+)"', text)
        named += [f"/r1mac/web/{name}" for name in re.findall(r'from "\./([^"]+)"', text)]
        wanted += [name for name in named if name not in found and name not in wanted]

    assert {kind.partition(";")[0] for kind in found.values()} == {
        "text/html",
        "text/css",
        "text/javascript",
        "image/svg+xml",
    }
    assert len(found) > 10


def test_a_file_that_has_not_changed_is_not_sent_again(server):
    first = ask(server.port, "/r1mac/web/app.js")

    again = ask(server.port, "/r1mac/web/app.js", headers={"If-None-Match": first.headers["etag"]})

    assert (again.status, again.body) == (304, b"")
    assert first.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["nothing.js", "../page.py", "%2e%2e/page.py", "..%2fpage.py", "", "index.html%00.js"])
def test_no_other_file_is_reached(server, name):
    assert ask(server.port, f"/r1mac/web/{name}").status == 404


def test_a_text_comes_back_as_html_in_two_parts(server):
    body = ask(server.port, "/r1mac/markup", {"text": "# One\n\n*two* \\(x^2\\)\n\nthr"}).json()

    assert body["settled_html"].startswith("<h1>One</h1>\n<p><em>two</em> <math")
    assert (body["settled_lines"], body["open_html"]) == (4, "<p>thr</p>\n")
    assert body["html"] == body["settled_html"] + body["open_html"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"text": "x" * (MIB + 1)}, 413, "1,048,577 bytes"),
        ({"text": "é" * (MIB // 2 + 1)}, 413, "1,048,578 bytes"),
        ({"text": 7}, 400, "text must be a string"),
        ({}, 400, "text must be a string"),
        ([1], 400, "JSON object"),
        (b'{"text": "\\ud800"}', 400, "JSON"),
    ],
)
def test_what_is_no_text_or_too_much_of_it_is_refused(server, body, status, words):
    answer = ask(server.port, "/r1mac/markup", body)

    assert answer.status == status
    assert words in answer.json()["error"]["message"]
