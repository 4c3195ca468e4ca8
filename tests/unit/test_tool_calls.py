"""ToolCallSplitter: calls told from text however it is cut; what is none stays text, to the letter."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.engine.events import Event, Notice, TextDelta, ToolCalled
from r1mac.engine.kept.json_values import from_json, to_json
from r1mac.engine.request import GenerateRequest, Message, ToolCall
from r1mac.engine.tool_calls import ToolCallEvents, ToolCallSplitter
from tests.replies import finished

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
FINISHED = finished()


def r1(name: str, arguments: str) -> str:
    return f"{CALL}function{SEP}{name}\n```json\n{arguments}\n```{CALL_END}"


def qwen(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def split(text: str, size: int) -> tuple[str, list[tuple[str, str]]]:
    """Return the text and the calls of *text* that comes in pieces of *size* characters."""
    splitter = ToolCallSplitter()
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    items = [item for piece in pieces for item in splitter.feed(piece)] + list(splitter.finish())
    assert "" not in items
    return (
        "".join(item for item in items if isinstance(item, str)),
        [(item.name, item.arguments) for item in items if isinstance(item, ToolCall)],
    )


def events_of(events: Iterable[Event], *, one_call: bool = False) -> list[Event]:
    cutter = ToolCallEvents(one_call=one_call)
    return [out for event in events for out in cutter.event(event)]


OSLO, BONN = '{"place": "Oslo"}', '{"place": "Bonn"}'
TRICKY = json.dumps(
    {"code": f'if x: {{ "}}" }} {CALL_END}{END}</tool_call>```\n', "é": [1, {"a": None}]}, ensure_ascii=False
)
# what the model wrote: the text that is left, the calls
WRITTEN = {
    "r1": (BEGIN + r1("weather", OSLO) + END, "", [("weather", OSLO)]),
    "r1 with words before": (f"Let me look.\n\n{BEGIN}{r1('weather', OSLO)}{END}\n", "Let me look.", [("weather", OSLO)]),
    "r1, two": (
        BEGIN + r1("weather", OSLO) + "\n" + r1("time", "{}") + END,
        "",
        [("weather", OSLO), ("time", "{}")],
    ),
    "v3.1": (f"{BEGIN}{CALL}weather{SEP}{OSLO}{CALL_END}{CALL}time{SEP}{{}}{CALL_END}{END}", "", [("weather", OSLO), ("time", "{}")]),
    "no list around": (r1("weather", OSLO), "", [("weather", OSLO)]),
    "no mark at the call": (f"{BEGIN}function{SEP}weather\n```json\n{OSLO}\n```{CALL_END}{END}", "", [("weather", OSLO)]),
    "no fence": (f"{BEGIN}{CALL}function{SEP}weather\n{OSLO}{CALL_END}{END}", "", [("weather", OSLO)]),
    "no arguments": (f"{BEGIN}{CALL}function{SEP}time\n```json\n```{CALL_END}{END}", "", [("time", "{}")]),
    "only the list ends": (f"{BEGIN}{CALL}function{SEP}weather\n```json\n{OSLO}\n```{END}", "", [("weather", OSLO)]),
    "nothing ends": (f"{BEGIN}{CALL}function{SEP}weather\n```json\n{OSLO}\n```", "", [("weather", OSLO)]),
    "gaps of a distill": ((BEGIN + r1("get_weather", OSLO) + END).replace("▁", "_"), "", [("get_weather", OSLO)]),
    "marks inside the arguments": (BEGIN + r1("run", TRICKY) + END, "", [("run", TRICKY)]),
    "line breaks inside a text": (BEGIN + r1("run", '{"code": "a\nb"}') + END, "", [("run", '{"code": "a\\nb"}')]),
    "words after": (f"{BEGIN}{r1('time', '{}')}{END}\nDone.", "\nDone.", [("time", "{}")]),
    "qwen": (qwen("weather", OSLO), "", [("weather", OSLO)]),
    "qwen, two with words": (f"Both:\n{qwen('weather', OSLO)}\n{qwen('weather', BONN)}", "Both:", [("weather", OSLO), ("weather", BONN)]),
    "qwen, arguments as text": (qwen("weather", json.dumps(OSLO)), "", [("weather", OSLO)]),
    "qwen, parameters": (qwen("weather", OSLO).replace("arguments", "parameters"), "", [("weather", OSLO)]),
    "qwen, none": ('<tool_call>{"name": "time"}</tool_call>', "", [("time", "{}")]),
    "qwen, unended": (qwen("weather", OSLO).removesuffix("</tool_call>"), "", [("weather", OSLO)]),
    "qwen, marks inside": (qwen("run", TRICKY), "", [("run", TRICKY)]),
    "broken, then whole": (f"<tool_call>{{oops}}</tool_call> {qwen('time', '{}')}", "<tool_call>{oops}</tool_call>", [("time", "{}")]),
}  # fmt: skip
# what looks like a call and is none
TEXTS = [
    "",
    "plain\n\n  text ",
    "a <b> c <tool> d <｜tool e",
    "<tool_call>",
    "Write <tool_call> before a call, and </tool_call> after it.",
    "<tool_call>\n{broken\n</tool_call>\n",
    '<tool_call>{"arguments": {}}</tool_call>',
    '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "a b", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {}} and more</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"x": "never closed',
    BEGIN,
    f"{BEGIN}{END} x",
    f"The mark {BEGIN} begins a list. " + "Words. " * 60,
    BEGIN + r1("weather", '{"place": }') + END,
    BEGIN + r1("weather", '["Oslo"]') + END,
    BEGIN + r1("no name at all", OSLO) + END,
    f"{CALL}{OSLO}{CALL_END}",
    f"{BEGIN}{CALL}function{SEP}f\n```json\n{OSLO} trailing words\n```{CALL_END}{END}",
    f"{BEGIN}{CALL}function{SEP}f\n```json\n{'[' * 100_000}",
    f"{BEGIN}{CALL}function{SEP}f\n```json\n" + '{"a":' * 100_000 + CALL_END,
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10**9])
@pytest.mark.parametrize("case", WRITTEN)
def test_calls_are_found_however_the_text_is_cut(case: str, size: int) -> None:
    """Every way in which models write calls gives the same calls, in pieces of any size."""
    written, text, calls = WRITTEN[case]

    assert split(written, size) == (text, calls)


@pytest.mark.parametrize("size", [1, 3, 10**9])
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:30])
def test_what_is_no_call_is_text(text: str, size: int) -> None:
    """Malformed calls and talk about calls come back to the letter."""
    if size < 10 and len(text) > 10_000:
        size = 997

    assert split(text, size) == (text, [])


@given(
    st.text(),
    st.lists(
        st.sampled_from(
            [
                *'<｜tool▁cals{}"` \n:',
                BEGIN,
                CALL,
                SEP,
                CALL_END,
                END,
                "function",
                "<tool_call>",
                "</tool_call>",
                '{"name": "f"}',
            ]
        ),
        max_size=30,
    ),
    st.integers(1, 5),
)
def test_nothing_is_lost_and_nothing_breaks(text: str, pieces: list[str], size: int) -> None:
    """Whatever a model writes: no error, and without a call it is given back whole."""
    written = text + "".join(pieces)

    rest, calls = split(written, size)

    assert rest == written or calls
    assert split(written, len(written) or 1) == (rest, calls)


def test_text_is_given_as_soon_as_it_is_certain() -> None:
    """An answer without calls is not held back, but for what may begin a call."""
    splitter = ToolCallSplitter()

    given_back = [list(splitter.feed(piece)) for piece in ("Hello", " there", " <", "b>", "!")]

    assert given_back == [["Hello"], [" there"], [], [" <b>"], ["!"]]


def test_each_call_comes_when_it_is_complete() -> None:
    """The first of two calls does not wait for the second, and they have different ids."""
    splitter = ToolCallSplitter()

    first = list(splitter.feed(BEGIN + r1("a", "{}")))
    second = list(splitter.feed("\n" + r1("b", "{}")))

    assert [call.name for call in (*first, *second)] == ["a", "b"]
    assert first[0].id != second[0].id
    assert list(splitter.feed(END)) + list(splitter.finish()) == []


def test_half_a_character_in_the_arguments_can_be_sent() -> None:
    """An escaped half of a surrogate pair becomes a character that UTF-8 has."""
    _, [(_, arguments)] = split(qwen("f", '{"x": "\\ud800"}'), 3)

    assert json.loads(arguments.encode())["x"] == "�"


def test_a_long_call_takes_no_longer_than_its_length() -> None:
    """A file of a megabyte as an argument, in pieces of a token, is read once and not with every piece."""
    content = "line \\n" * 30_000
    text, calls = split(BEGIN + r1("write", f'{{"content": "{content}"}}') + END, 4)

    assert text == ""
    assert json.loads(calls[0][1]) == {"content": json.loads(f'"{content}"')}


def test_events_of_a_reply() -> None:
    """Calls are cut out of the answer; those in a thought are a thought; other events keep their places."""
    notice = Notice(kind="memory", text="less")
    thought = TextDelta(channel="think", text=qwen("weather", OSLO))

    events = events_of(
        [
            thought,
            TextDelta(channel="answer", text="Yes. <tool_"),
            notice,
            TextDelta(channel="answer", text=f"call>{qwen('time', '{}')[11:-12]}"),
            FINISHED,
        ]
    )

    call = events[-2]
    assert isinstance(call, ToolCalled)
    assert (call.call.name, call.call.arguments) == ("time", "{}")
    assert events == [thought, TextDelta(channel="answer", text="Yes."), notice, call, FINISHED]


def test_only_one_call_where_only_one_is_wanted() -> None:
    """A program that takes one call at a time gets the first, and the text around all of them."""
    said = TextDelta(channel="answer", text=f"Both: {qwen('a', '{}')} and {qwen('b', '{}')}")

    events = events_of([said, FINISHED], one_call=True)

    assert [event.call.name for event in events if isinstance(event, ToolCalled)] == ["a"]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "Both: and"


@pytest.mark.parametrize("opener", [BEGIN, f"{BEGIN}{CALL}", "<tool_call>"])
def test_talk_about_calls_is_not_held_back_to_the_end(opener: str) -> None:
    """An answer that only mentions an opening mark goes on arriving."""
    splitter = ToolCallSplitter()

    first = [*splitter.feed(f"The mark {opener} "), *splitter.feed("begins a list of calls. " * 20)]

    assert "".join(first).startswith(f"The mark {opener} begins")  # type: ignore[arg-type]


def test_a_request_with_functions_can_be_kept() -> None:
    """A reply that is kept on the disk remembers what was offered and called."""
    call = ToolCall(id="call_1", name="weather", arguments=OSLO)
    messages = (
        Message("user", "Warm?"),
        Message("assistant", "", (call,)),
        Message("tool", "3", tool_call_id="call_1"),
    )
    request = GenerateRequest(messages=messages, max_tokens=9, tools=('{"type": "function"}',), must_call="weather")

    assert from_json(GenerateRequest, json.loads(json.dumps(to_json(request)))) == request
