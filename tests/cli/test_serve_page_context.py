"""The page's choice of a context, in headless Chromium, with the real worker and a model that recites."""

import re

import pytest

from r1mac.engine.request import GenerateRequest
from r1mac.errors import DoesNotFit
from tests.browsers import NEEDS_CHROMIUM, chromium
from tests.http_server import MODEL, Reciter, served
from tests.http_talk import ask, eventually

pytestmark = NEEDS_CHROMIUM

# More than a hundred seconds of it: whatever is done while it is said is in time.
LONG = "word " * 5000


@pytest.fixture(name="server", scope="module")
def _server():
    def said(request: GenerateRequest) -> str:
        return f"Hm.</think>{LONG if request.messages[-1].text == 'Talk for long' else 'Yes.'}"

    with served(Reciter(said, words_per_s=50), models=(MODEL, "other")) as server:
        ask(server.port, "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
        yield server


@pytest.fixture(name="tab", scope="module")
def _tab():
    with chromium() as browser:
        context = browser.new_context()
        context.set_default_timeout(20_000)
        yield context.new_page()


@pytest.fixture(name="page")
def _page(tab, server):
    """Yield the page, with the context as the server began; nothing broke in it."""
    server.room.full = None
    ask(server.port, "/r1mac/context", {"context_tokens": 8192})
    eventually(lambda: server.worker.contexts(MODEL).next_context_tokens is None)
    troubles: list[str] = []
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.goto(f"http://127.0.0.1:{server.port}")
    shown(tab, "8K context")
    yield tab
    assert troubles == []


def choice(page):
    return page.get_by_role("combobox", name="Context")


def shown(page, words: str) -> None:
    """Wait until the context that is chosen reads *words*."""
    page.locator("#context option:checked", has_text=words).wait_for(state="attached")


def note(page, words: str) -> None:
    page.locator("#context-note", has_text=words).wait_for()


def talk(page, question: str) -> None:
    page.get_by_role("textbox", name="Question").fill(question)
    page.keyboard.press("Enter")


def test_a_context_is_chosen_by_keyboard_and_a_reload_shows_it(page, server):
    """What is offered says what it needs; what does not fit is there and cannot be chosen."""
    options = choice(page).locator("option")
    assert [re.sub(r"\d+\.\d GiB", "N GiB", text) for text in options.all_inner_texts()] == [
        "4K context · N GiB",
        "8K context",
        "64K context · N GiB",
        "100,000 context · N GiB, the most that fits",
        "128K context · N GiB, too much",
    ]
    assert options.nth(4).is_disabled()

    choice(page).focus()
    page.keyboard.press("ArrowDown")

    note(page, "The context is now 64K tokens.")
    assert server.worker.contexts(MODEL).context_tokens == 65_536
    assert choice(page).get_attribute("aria-busy") == "false"
    talk(page, "Hi")
    page.get_by_role("button", name="Regenerate").wait_for()
    assert server.worker.state().context_tokens == 65_536
    page.reload()
    shown(page, "64K context")


def test_a_choice_waits_for_the_reply_that_is_written(page, server):
    talk(page, "Talk for long")
    page.get_by_text("word word word").wait_for()

    choice(page).select_option("4096")

    note(page, "The context becomes 4K tokens when the replies at work have ended.")
    assert choice(page).get_attribute("aria-busy") == "true"
    assert (server.worker.state().context_tokens, server.worker.state().next_context_tokens) == (8192, 4096)
    page.keyboard.press("Escape")
    note(page, "The context is now 4K tokens.")
    assert "word word word" in page.get_by_role("article", name="Reply").inner_text()
    assert choice(page).get_attribute("aria-busy") == "false"
    assert server.worker.state().context_tokens == 4096


def test_a_refusal_is_said_in_words_and_the_former_context_stays(page, server):
    """At once where the plan says so, and later where the memory is gone when the choice is carried out."""
    room = server.room
    room.longest_tokens = 50_000  # since the page asked
    try:
        choice(page).select_option("65536")
        note(page, "Reciter does not fit with 65536 tokens (the longest that fits is 50000 tokens)")
    finally:
        room.longest_tokens = 100_000
    shown(page, "8K context")

    room.full = DoesNotFit("another r1mac holds 30.0 GiB", hint="stop that one first")
    choice(page).select_option("4096")
    note(page, "The context stays at 8K tokens: another r1mac holds 30.0 GiB (stop that one first)")
    shown(page, "8K context")
    assert server.worker.state().context_tokens == 8192


def test_what_somebody_else_chose_is_shown(page, server):
    """Of another page, or of a program; the page looks when a reply ends at the latest."""
    ask(server.port, "/r1mac/context", {"context_tokens": 4096})
    eventually(lambda: server.worker.state().context_tokens == 4096)

    talk(page, "Hi")

    shown(page, "4K context")


def test_a_model_that_is_not_loaded_has_a_context_of_its_own(page, server):
    page.get_by_role("combobox", name="Model").select_option("other")
    shown(page, "100,000 context")

    choice(page).select_option("8192")

    note(page, "8K tokens of context, once this model is loaded.")
    assert server.worker.contexts(MODEL).context_tokens == 8192
    assert server.worker.state().model in {MODEL, None}
    page.get_by_role("combobox", name="Model").select_option(MODEL)
    shown(page, "8K context")
    assert server.worker.contexts("other").context_tokens == 8192
