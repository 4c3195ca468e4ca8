"""The page as a person uses it, in headless Chromium, with a model that recites."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from r1mac.engine.fake import RecitingSession
from r1mac.engine.request import GenerateRequest
from r1mac.errors import DoesNotFit
from r1mac.server.app import make_app
from r1mac.server.job import Job
from r1mac.server.state import ContextOffer, Contexts, ServedModel, WorkerState
from r1mac.units import GIB
from tests.browsers import NEEDS_CHROMIUM, chromium

pytestmark = NEEDS_CHROMIUM

ANSWER = r"""Two and two. **Let me** count: \(1 + 1 + 1 + 1\).
</think>

The sum is

\[
\sum_{k=1}^{4} 1 = \boxed{4}
\]

| sum | value |
|----:|------:|
| 2+2 | $2^2$ |

```python
print(2 + 2)
```

<img src=x onerror="document.title='stolen'"> ![spy](https://spy.example/x.png)
"""
# More than a hundred seconds of it: whatever is done while it is said is in time.
LONG = "word " * 5000
# What is asked, what is said, and how many words a second.
TURNS: dict[str, tuple[str | Exception, float | None]] = {
    "What is 2+2?": (ANSWER, 100),
    "Talk for long": (f"Short thought.</think>{LONG}", 50),
    "Think for long": (f"{LONG}</think>Here is the answer.", 50),
    "Again": ("Once more.</think>The same again.", None),
    "Too much": (DoesNotFit("41.2 GiB are needed and 36.0 GiB are free", hint="ask for less context"), None),
}


class Reciter:
    """A worker whose replies are known beforehand."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.at_work = 0

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        threading.Thread(target=self._write, args=(job,), daemon=True).start()

    def _write(self, job: Job) -> None:
        answer, words_per_s = TURNS[job.asked.messages[-1].text]
        self.at_work += 1
        try:
            session = RecitingSession([answer], words_per_s=words_per_s)
            for event in session.generate(
                job.asked.request(GenerateRequest(messages=(), max_tokens=10_000)), job.control
            ):
                job.put(event)
        except DoesNotFit as error:
            job.fail(error)
        finally:
            self.at_work -= 1

    def cancel(self, job: Job) -> None:
        job.control.cancel()

    def state(self) -> WorkerState:
        return WorkerState(
            phase="ready",
            model="tiny",
            running=self.at_work,
            context_tokens=32_768,
            weight_bytes=30 * GIB,
            cache_bytes=4 * GIB,
            used_bytes=33 * GIB,
            limit_bytes=48 * GIB,
        )

    def models(self) -> tuple[ServedModel, ...]:
        return (ServedModel(name="tiny", title="Tiny R1", loaded=True), ServedModel(name="small", title="Small R1"))

    def contexts(self, model: str | None) -> Contexts:
        offers = (ContextOffer(context_tokens=tokens, total_bytes=34 * GIB, fits=True) for tokens in (4096, 32_768))
        return Contexts(
            model=model or "tiny",
            loaded=model == "tiny",
            context_tokens=32_768,
            model_context_tokens=32_768,
            longest_context_tokens=32_768,
            kv_bits=16,
            budget_bytes=43 * GIB,
            offers=tuple(offers),
        )

    def choose_context(self, model: str | None, context_tokens: int) -> Contexts:
        raise NotImplementedError

    async def count_tokens(self, asked: object) -> int:
        raise NotImplementedError


@contextlib.contextmanager
def served(worker: Reciter, **options: object) -> Iterator[str]:
    """Serve *worker* on a free port; yield the address."""
    server = uvicorn.Server(uvicorn.Config(make_app(worker, **options), log_level="error", timeout_graceful_shutdown=1))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=20)


@pytest.fixture(name="worker", scope="module")
def _worker() -> Reciter:
    return Reciter()


@pytest.fixture(name="url", scope="module")
def _url(worker):
    with served(worker) as url:
        yield url


@pytest.fixture(name="browser", scope="module")
def _browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(name="tab", scope="module")
def _tab(browser):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(20_000)
    return context.new_page()


@pytest.fixture(name="page")
def _page(tab, url):
    """Yield the page, new; after the test nothing was asked of others and nothing broke."""
    troubles: list[str] = []
    asked: list[str] = []
    heard = {
        "pageerror": lambda error: troubles.append(str(error)),
        "console": lambda said: troubles.append(said.text) if said.type == "error" else None,
        "request": lambda request: asked.append(request.url),
    }
    for event, hear in heard.items():
        tab.on(event, hear)
    # Another query than before, so that it is loaded anew.
    tab.goto(f"{url}/?{time.monotonic_ns()}")
    tab.get_by_role("combobox", name="Model").get_by_text("Tiny R1").wait_for(state="attached")
    yield tab
    for event, hear in heard.items():
        tab.remove_listener(event, hear)
    # A refused request is told on the console by the browser itself.
    told = [trouble for trouble in troubles if "Failed to load resource" not in trouble]
    assert told == []
    assert {address.split("/")[2] for address in asked if not address.startswith("blob:")} == {url.split("/")[2]}


def ask(page, question: str) -> None:
    page.get_by_role("textbox", name="Question").fill(question)
    page.keyboard.press("Enter")


def answered(page) -> None:
    """Wait until the reply is complete and shown."""
    page.get_by_role("button", name="Regenerate").wait_for()


def test_an_answer_is_shown_as_it_is_meant(page):
    ask(page, "What is 2+2?")

    answered(page)
    reply = page.get_by_role("article", name="Reply")
    assert not reply.get_by_text("Let me").is_visible()
    assert "tokens" in reply.locator("summary").inner_text()
    box = reply.locator("math").first.bounding_box()
    assert box["width"] > 30
    assert box["height"] > 20
    assert reply.get_by_role("cell", name="2+2").is_visible()
    assert page.title() == "What is 2+2? · r1mac"
    reply.locator("summary").click()
    reply.locator("strong", has_text="Let me").wait_for()
    assert reply.locator("details math").is_visible()


def test_answers_and_code_are_copied_as_they_were_written(page):
    ask(page, "What is 2+2?")
    answered(page)

    page.get_by_role("button", name="Copy the code").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "print(2 + 2)\n"
    page.get_by_role("article", name="Reply").get_by_role("button", name="Copy", exact=True).click()
    page.get_by_text("Copied").nth(1).wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == ANSWER.partition("</think>")[2].strip()


def test_a_reply_can_be_stopped_and_survives_a_reload(page, worker):
    ask(page, "Talk for long")
    page.get_by_text("word word word").wait_for()

    page.keyboard.press("Escape")

    page.get_by_text("Stopped.").wait_for()
    assert worker.jobs[-1].control.cancelled
    page.reload()
    page.get_by_text("Stopped.").wait_for()
    page.get_by_text("word word word").wait_for()
    assert page.locator(".bubble").inner_text() == "Talk for long"


def test_a_page_that_is_left_stops_its_reply_and_keeps_what_came(page, worker):
    ask(page, "Talk for long")
    page.get_by_text("word word word").wait_for()
    job = worker.jobs[-1]

    page.reload()

    page.get_by_text("The reply was cut off.").wait_for()
    page.get_by_text("word word word").wait_for()
    wait_until(lambda: job.control.cancelled)


def test_a_thought_is_open_can_be_steered_and_folds(page, worker):
    ask(page, "Think for long")
    page.locator("details.thought[open]").get_by_text("word word word").wait_for()

    page.get_by_role("button", name="Hint …").click()
    page.get_by_role("textbox", name="A hint for the thought").fill("Mind the gap")
    page.keyboard.press("Enter")
    page.get_by_text("Mind the gap").wait_for()
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="Pause").wait_for()
    page.get_by_role("button", name="Answer now").click()

    page.get_by_text("Here is the answer.").wait_for()
    page.locator("details.thought:not([open])").wait_for()
    answered(page)
    assert page.get_by_text("Closing the thought; the answer follows.").is_visible()


def test_a_question_is_edited_and_an_answer_written_again(page, worker):
    ask(page, "What is 2+2?")
    answered(page)

    page.locator(".question").hover()
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Edit the question").fill("Again")
    page.keyboard.press("Enter")
    page.get_by_text("The same again.").wait_for()
    answered(page)
    count = len(worker.jobs)
    page.get_by_role("button", name="Regenerate").click()
    wait_until(lambda: len(worker.jobs) > count)
    answered(page)

    assert page.locator(".bubble").all_inner_texts() == ["Again"]
    assert page.locator(".reply").count() == 1
    assert [message.text for message in worker.jobs[-1].asked.messages] == ["Again"]


def test_the_next_question_carries_the_answer_and_not_the_thought(page, worker):
    ask(page, "Again")
    answered(page)
    page.get_by_role("button", name="Options").click()
    page.get_by_role("combobox", name="Thought").select_option("low")
    page.get_by_label("Temperature").fill("0.25")
    page.get_by_label("System prompt").fill("Be brief")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("combobox", name="Model").select_option("Small R1")

    ask(page, "Again")
    page.locator(".reply").nth(1).get_by_text("The same again.").wait_for()

    asked = worker.jobs[-1].asked
    texts = [message.text for message in asked.messages]
    assert [texts[0], texts[1], texts[2].strip(), texts[3]] == ["Be brief", "Again", "The same again.", "Again"]
    assert (asked.model, asked.think_tokens, asked.sampling["temperature"]) == ("small", 2048, 0.25)


def test_a_refusal_is_said_in_the_servers_words_and_can_be_tried_again(page):
    ask(page, "Too much")

    page.get_by_text("41.2 GiB are needed and 36.0 GiB are free (ask for less context)").first.wait_for()
    again = TURNS["Too much"]
    TURNS["Too much"] = ("Hm.</think>Now it fits.", None)
    try:
        page.get_by_role("button", name="Try again").click()
        page.get_by_text("Now it fits.").wait_for()
    finally:
        TURNS["Too much"] = again


def test_an_answer_stays_where_another_one_cannot_be_had(page):
    ask(page, "Again")
    answered(page)

    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.get_by_role("button", name="Regenerate").click()

    page.get_by_role("article").get_by_text("The server does not answer").wait_for()
    page.get_by_text("The same again.").wait_for()
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Try again").click()
    answered(page)
    assert not page.get_by_role("article").get_by_text("The server does not answer").is_visible()


def test_conversations_are_listed_renamed_exported_and_deleted(page):
    ask(page, "Again")
    answered(page)
    page.get_by_role("button", name="New chat").click()
    ask(page, "What is 2+2?")
    answered(page)
    names = page.locator("#conversations .name")
    assert names.all_inner_texts()[:2] == ["What is 2+2?", "Again"]

    menu = page.locator("#conversations summary").first
    menu.click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export as Markdown").click()
    text = download.value.path().read_text()
    assert download.value.suggested_filename == "what-is-2-2.md"
    assert ANSWER.partition("</think>")[2].strip() in text
    menu.click()
    page.get_by_role("button", name="Rename …").click()
    page.get_by_role("textbox", name="Rename").fill("Sums")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Sums").wait_for()
    menu.click()
    page.get_by_role("button", name="Delete …").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_text("What is on your mind?").wait_for()
    page.reload()
    names.first.wait_for()
    assert names.first.inner_text() == "Again"
    assert "Sums" not in names.all_inner_texts()


def test_memory_and_context_are_shown(page):
    page.get_by_role("combobox", name="Context").get_by_text("32K context").wait_for(state="attached")
    meter = page.get_by_role("meter", name="Memory")
    meter.wait_for()
    assert meter.get_attribute("aria-valuetext") == "33.0 GiB used, 34.0 GiB planned, limit 48.0 GiB"


def test_a_server_with_a_key_asks_for_it(browser, worker):
    with served(worker, api_key="sesame") as url, contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(url)
        page.get_by_role("textbox", name="API key").fill("sesame")
        page.keyboard.press("Enter")
        page.get_by_role("combobox", name="Model").get_by_text("Tiny R1").wait_for(state="attached")
        ask(page, "Again")
        page.get_by_text("The same again.").wait_for()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)
