"""Calls of functions told from the text of an answer, while it is still arriving.

Two ways of writing them are known. DeepSeek's, of R1 and V3 with the word «function» and a fence, of V3.1 without::

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME
    ```json
    {"place": "Oslo"}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

and that of Hermes and Qwen, which the Qwen3 distill has learned too::

    <tool_call>
    {"name": "NAME", "arguments": {"place": "Oslo"}}
    </tool_call>
"""
# ruff: noqa: RUF001, RUF002 - the bars of DeepSeek's own tokens

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from r1mac.engine.events import Event, Finished, TextDelta, ToolCalled
from r1mac.engine.request import ToolCall
from r1mac.engine.think import tag_overlap

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
HERMES_BEGIN, HERMES_END = "<tool_call>", "</tool_call>"

# The distills have no tokens for DeepSeek's marks, and write them with other gaps at times.
_GAPS = ("▁", "_", " ")


def _spellings(mark: str) -> tuple[str, ...]:
    return tuple(mark.replace("▁", gap) for gap in _GAPS)


_OPENERS = (*_spellings(CALLS_BEGIN), *_spellings(CALL_BEGIN), HERMES_BEGIN)
_LIST_ENDS = _spellings(CALLS_END)
_DEEPSEEK_CLOSERS = (*_spellings(CALL_END), *_LIST_ENDS)
_CLOSERS = (*_DEEPSEEK_CLOSERS, HERMES_END)
_MOST_MARK_CHARACTERS = max(map(len, _CLOSERS))
_SEPARATOR = re.compile("|".join(map(re.escape, _spellings(SEPARATOR))))
_BEGINNINGS = re.compile("|".join(map(re.escape, (*_spellings(CALLS_BEGIN), *_spellings(CALL_BEGIN)))))
_FENCE = re.compile(r"```(?:json)?")
_NAME = re.compile(r"[\w.:/-]{1,128}")
# A name, its marks and a fence are shorter; what is longer is text that only mentions a mark.
_MOST_HEAD_CHARACTERS = 300


class ToolCallSplitter:
    """Cuts a stream of text at calls of functions. Text in; text and whole calls out.

    It does not matter where the pieces break. What begins like a call and is none is text, to the letter; white space
    before a call belongs to neither, and that after it to the text that follows, if any does.
    """

    def __init__(self, make_id: Callable[[], str] | None = None) -> None:
        """Begin an answer; *make_id* names its calls."""
        self._make_id = make_id or _new_id
        self._held = ""
        # What came since a long call began, and the end of it: until a closing mark comes, nothing need be read again.
        self._coming: list[str] = []
        self._tail = ""
        self._patient = False
        # How much of what is held was searched for the end of a call in vain.
        self._searched = 0
        self._in_call = self._after_call = False

    def feed(self, text: str) -> Iterator[str | ToolCall]:
        """Take more text and yield what is certain of it."""
        self._coming.append(text)
        self._tail = (self._tail + text)[-len(text) - _MOST_MARK_CHARACTERS :]
        if not self._patient or any(mark in self._tail for mark in _CLOSERS):
            self._gather()
            yield from self._read(final=False)
            self._patient = self._in_call and len(self._held) > 2 * _MOST_HEAD_CHARACTERS

    def finish(self) -> Iterator[str | ToolCall]:
        """Yield what was held back; nothing more will arrive. A call whose closing mark is missing is one."""
        self._gather()
        yield from self._read(final=True)
        rest = self._take(len(self._held))
        if rest and not (self._after_call and not rest.strip()):
            yield rest

    def _gather(self) -> None:
        self._held += "".join(self._coming)
        self._coming.clear()

    def _read(self, *, final: bool) -> Iterator[str | ToolCall]:
        while self._held:
            if not self._in_call:
                yield from self._read_text()
                if not self._in_call:
                    return
            end = self._call_end(final=final)
            if end is None:
                return
            call, length = end
            self._in_call, self._searched = False, 0
            if call is None:
                # Its white space was held with it.
                self._after_call = False
                yield self._take(length)
            else:
                self._after_call = True
                self._take(length)
                yield call

    def _read_text(self) -> Iterator[str]:
        """Give back text up to where a call begins, or may begin."""
        if self._after_call and not self._skip_list_end():
            return
        places = [place for opener in _OPENERS if (place := self._held.find(opener)) >= 0]
        self._in_call = bool(places)
        place = min(places) if places else len(self._held) - max(tag_overlap(self._held, mark) for mark in _OPENERS)
        text = self._take(len(self._held[:place].rstrip()))
        if text:
            self._after_call = False
            yield text

    def _skip_list_end(self) -> bool:
        """Drop the mark that ends a list of calls. Return False while more text is needed to see whether it comes."""
        stripped = self._held.lstrip()
        for mark in _LIST_ENDS:
            if stripped.startswith(mark):
                self._held = stripped[len(mark) :]
                stripped = self._held.lstrip()
        return not any(mark.startswith(stripped) for mark in _LIST_ENDS)

    def _call_end(self, *, final: bool) -> tuple[ToolCall | None, int] | None:
        """Return the call that is held and its length; None for it if it is none; None while that is open."""
        lead = len(self._held) - len(self._held.lstrip())
        opener = next(mark for mark in _OPENERS if self._held.startswith(mark, lead))
        begin = lead + len(opener)
        hermes = opener == HERMES_BEGIN
        if _is_text(self._held[begin : begin + _MOST_HEAD_CHARACTERS], hermes=hermes):
            return None, begin
        closers = (HERMES_END,) if hermes else _DEEPSEEK_CLOSERS
        parse = _parse_hermes if hermes else _parse_deepseek
        for place, length in self._closings(closers, begin):
            try:
                found = parse(self._held[begin:place])
            except _StillOpenError:
                self._searched = place + length
                continue
            except (ValueError, RecursionError):
                return None, place + length
            return ToolCall(id=self._make_id(), name=found[0], arguments=found[1]), place + length
        if not final:
            self._searched = max(self._searched, len(self._held) - max(map(len, closers)))
            return None
        try:
            name, arguments = parse(self._held[begin:])
        except (ValueError, RecursionError):
            return None
        return ToolCall(id=self._make_id(), name=name, arguments=arguments), len(self._held)

    def _closings(self, closers: tuple[str, ...], begin: int) -> Iterator[tuple[int, int]]:
        """Yield place and length of every closing mark that was not looked at."""
        while True:
            start = max(begin, self._searched)
            places = [(place, len(mark)) for mark in closers if (place := self._held.find(mark, start)) >= 0]
            if not places:
                return
            yield min(places)

    def _take(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text


class ToolCallEvents:
    """Events of a reply with calls cut out of the answer. A call inside a thought is a thought."""

    def __init__(self, *, one_call: bool = False) -> None:
        """Begin a reply; with *one_call* those after the first are left out."""
        self._splitter = ToolCallSplitter()
        self._one_call = one_call
        self._called = False

    def event(self, event: Event) -> Iterator[Event]:
        """Take an event and yield what is certain."""
        if isinstance(event, TextDelta) and event.channel == "answer":
            yield from self._said(self._splitter.feed(event.text))
            return
        if isinstance(event, Finished):
            yield from self._said(self._splitter.finish())
        yield event

    def _said(self, items: Iterable[str | ToolCall]) -> Iterator[Event]:
        for item in items:
            if isinstance(item, str):
                yield TextDelta(channel="answer", text=item)
            elif not (self._one_call and self._called):
                self._called = True
                yield ToolCalled(item)


class _StillOpenError(ValueError):
    """A closing mark stands inside a text of the arguments."""


def _is_text(head: str, *, hermes: bool) -> bool:
    """Whether what follows an opening mark is certainly no call."""
    if hermes:
        return bool(head.strip()) and not head.lstrip().startswith("{")
    long = len(head) == _MOST_HEAD_CHARACTERS
    return long and "{" not in head and not any(mark in head for mark in _DEEPSEEK_CLOSERS)


def _parse_deepseek(body: str) -> tuple[str, str]:
    head, brace, _ = body.partition("{")
    # «function» and the name of R1, or the name alone of V3.1.
    parts = [_FENCE.sub("", part).strip() for part in _SEPARATOR.split(_BEGINNINGS.sub("", head))]
    name = [part for part in parts if part][-1:]
    if len(parts) == 1 or not name or not _NAME.fullmatch(name[0]):
        raise ValueError("no function is named")
    if not brace:
        return name[0], "{}"
    arguments, rest = _decode(body[len(head) :])
    if _FENCE.sub("", rest).strip():
        raise ValueError("something follows the arguments")
    return name[0], _as_text(arguments)


def _parse_hermes(body: str) -> tuple[str, str]:
    call, rest = _decode(body.lstrip())
    name = call.get("name")
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments, strict=False, parse_constant=_refuse)
    if rest.strip() or not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(arguments, dict):
        raise ValueError("not a call")
    return name, _as_text(arguments)


def _decode(text: str) -> tuple[dict[str, Any], str]:
    """Return the JSON object that *text* begins with, and what follows it."""
    try:
        # Models leave line breaks in their texts unescaped.
        value, end = json.JSONDecoder(strict=False, parse_constant=_refuse).raw_decode(text)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Unterminated string"):
            raise _StillOpenError from error
        raise
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 - to its reader a text has values, no types
    return value, text[end:]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _as_text(arguments: dict[str, Any]) -> str:
    text = json.dumps(arguments, ensure_ascii=False)
    # Half a surrogate pair, escaped by the model, is no character that could be sent.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _new_id() -> str:
    return f"call_{secrets.token_hex(12)}"
