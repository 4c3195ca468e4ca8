"""Functions, calls and results put into a conversation, by the model's own template where that can, else as text.

What a template can do is seen by rendering a small conversation. R1's own templates list no functions and lose the
marks of every list of calls after the first; R1-0528's and V3.1's list none, and write calls well; those of the Qwen
family do both. Models whose template knows nothing of it are told in text: R1's in the words of its marks, as vLLM's
``tool_chat_template_deepseekr1.jinja`` does, others in those of Hermes, which Qwen took over.
"""
# ruff: noqa: RUF001 - the bars of DeepSeek's own tokens

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from r1mac.engine.call_grammar import calls_format
from r1mac.engine.grammar import check
from r1mac.engine.request import AnswerFormat, Message, ToolCall
from r1mac.engine.think import THINK_END
from r1mac.engine.tool_calls import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    HERMES_BEGIN,
    HERMES_END,
    SEPARATOR,
)
from r1mac.errors import BadAnswerFormat, BadCheckpoint, RefusedConversation

_OUTPUTS_BEGIN, _OUTPUTS_END = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
_OUTPUT_BEGIN, _OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
_ASSISTANT = "<｜Assistant｜>"

Dicts = list[dict[str, Any]]
# Messages and tools to text, without the opening of the model's turn. Raises BadCheckpoint.
Render = Callable[[Dicts, Dicts | None], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapedTurns:
    """A conversation as its template takes it.

    Attributes:
        messages: what the template is given.
        tools: functions that it lists itself, if it does.
        texts: what to put in the place of words in the rendered text.
        open_at: the word behind which the model goes on, in the middle of its turn.
    """

    messages: Dicts
    tools: Dicts | None = None
    texts: dict[str, str] = field(default_factory=dict)
    open_at: str | None = None

    def fill(self, text: str) -> str:
        """Return the rendered *text* with what belongs in it.

        Raises:
            RefusedConversation: the template left a turn out, or wrote it twice.
        """
        for word, meant in self.texts.items():
            if text.count(word) != 1:
                raise RefusedConversation(
                    "the chat template cannot render a conversation with functions",
                    hint="ask without functions, or fetch the model's chat_template.jinja again",
                )
            text = text.replace(word, meant)
        return text


class ToolTurns:
    """How one model is told of functions, their calls and their results."""

    def __init__(self, render: Render, *, end_text: str, is_token: Callable[[str], bool]) -> None:
        """Make it for a template and a tokenizer.

        Args:
            render: renders the template.
            end_text: the token that ends a turn.
            is_token: whether a text is one token of the model's.
        """
        self._render = render
        self._end_text = end_text
        self._is_token = is_token

    def shape(self, messages: Sequence[Message], tools: Sequence[str], must_call: bool | str) -> ShapedTurns:
        """Return the conversation as the template takes it."""
        if not tools and not any(message.tool_calls or message.role == "tool" for message in messages):
            return ShapedTurns(messages=[_plain(message) for message in messages])
        listed = [json.loads(tool) for tool in tools] if tools and self._lists_functions else None
        told = [] if listed else self._description(tools)
        if tools and must_call:
            told.append(_command(must_call))
        messages = _with_system(in_call_order(messages), "\n\n".join(told))
        if self._native is not None:
            return ShapedTurns(messages=[self._native.message(message) for message in messages], tools=listed)
        shaped = self._in_r1_words(messages) if self._is_deepseek else _in_hermes_words(messages)
        return replace(shaped, tools=listed)

    def calls_format(self, tools: Sequence[str], must_call: bool | str) -> AnswerFormat:
        """Return what an answer that must call a function has to look like, written as this model is told to."""
        first = self._example.index("NAME")
        before, behind = self._example[:first], self._example[first + len("NAME") :]
        middle, _, after = behind.partition(_EXAMPLE_ARGUMENTS)
        opener, closer = (CALL_BEGIN, CALL_END) if CALL_BEGIN in before else (HERMES_BEGIN, HERMES_END)
        begin, end = before.index(opener), after.index(closer) + len(closer)

        def form(tools: Sequence[str]) -> AnswerFormat:
            return calls_format(
                tools,
                must_call,
                before=before[:begin],
                call=(before[begin:], middle, after[:end]),
                between="\n",
                after=after[end:],
                is_token=self._is_token,
            )

        wanted = form(tools)
        try:
            check(wanted)
        except BadAnswerFormat:
            # The library does not know all that a schema can say. Then any object will do, as it would without it.
            return form([_without_schema(tool) for tool in tools])
        return wanted

    @cached_property
    def _lists_functions(self) -> bool:
        tool = {"name": "probe_name", "description": "probe_words", "parameters": {"type": "object", "properties": {}}}
        try:
            text = self._render([{"role": "user", "content": "Hi"}], [{"type": "function", "function": tool}])
        except BadCheckpoint:
            return False
        return "probe_name" in text and "probe_words" in text

    @cached_property
    def _native(self) -> "_NativeForm | None":
        """How the template takes calls, or None if it garbles them."""
        for form in _FORMS:
            if (text := self._probe(form)) is not None and _is_well_formed(text):
                return form
        return None

    @cached_property
    def _is_deepseek(self) -> bool:
        history = [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Hi")]
        try:
            return _ASSISTANT in self._render([_plain(message) for message in history], None)
        except BadCheckpoint:
            return False

    def _probe(self, form: "_NativeForm") -> str | None:
        try:
            return self._render([form.message(message) for message in _PROBE], None)
        except BadCheckpoint:
            return None

    def _description(self, tools: Sequence[str]) -> list[str]:
        if not tools:
            return []
        functions = "\n".join(json.dumps(json.loads(tool)["function"], ensure_ascii=False) for tool in tools)
        return [f"{_INTRODUCTION}\n\n{self._example}\n\n{_RULES}\n\n{functions}"]

    @cached_property
    def _example(self) -> str:
        """What a call looks like, as the template writes it if it does."""
        text = (self._probe(self._native) or "") if self._native is not None else ""
        first = text.find(CALLS_BEGIN, text.find(_SECOND_CALL_TEXT))
        if first >= 0:
            example = text[first : text.index(CALLS_END, first) + len(CALLS_END)]
            return example.replace(_PROBE_CALLS[2].name, "NAME").replace(_PROBE_CALLS[2].arguments, _EXAMPLE_ARGUMENTS)
        call = ToolCall(id="", name="NAME", arguments=_EXAMPLE_ARGUMENTS)
        return _r1_calls([call]) if self._is_deepseek else _hermes_calls([call])

    def _in_r1_words(self, messages: Sequence[Message]) -> ShapedTurns:
        """Put calls, results and what the model said after them into one turn of the assistant's.

        R1 has no role for results: they follow the calls, and the model's answer follows them, without a mark.
        """
        dicts: Dicts = []
        texts: dict[str, str] = {}
        open_at = None
        for run in _runs(messages):
            if isinstance(run, Message):
                dicts.append(_plain(run))
                continue
            word = _word()
            texts[word] = self._r1_turn(run)
            open_at = word if run[-1] is messages[-1] and run[-1].role == "tool" else None
            dicts.append({"role": "assistant", "content": word})
        return ShapedTurns(messages=dicts, texts=texts, open_at=open_at)

    def _r1_turn(self, run: Sequence[Message]) -> str:
        parts: list[str] = []
        for index, message in enumerate(run):
            if message.role == "tool":
                first, last = (not 0 <= at < len(run) or run[at].role != "tool" for at in (index - 1, index + 1))
                parts.append(_OUTPUTS_BEGIN if first else "\n")
                parts.append(f"{_OUTPUT_BEGIN}{message.text}{_OUTPUT_END}")
                parts.append(_OUTPUTS_END if last else "")
                continue
            parts.append(message.text.split(THINK_END)[-1])
            if message.tool_calls:
                parts.append(_r1_calls(message.tool_calls))
            # The template ends the last one.
            parts.append(self._end_text if index + 1 < len(run) else "")
        return "".join(parts)


def in_call_order(messages: Sequence[Message]) -> list[Message]:
    """Return *messages* with results in the order of their calls: to the model a result has no other name."""
    ordered: list[Message] = []
    places: dict[str, int] = {}
    results: list[Message] = []
    for message in messages:
        if message.role == "tool":
            results.append(message)
            continue
        ordered += _sorted_results(results, places)
        results = []
        ordered.append(message)
        if message.tool_calls:
            places = {call.id: place for place, call in enumerate(message.tool_calls)}
    return ordered + _sorted_results(results, places)


class _NativeForm(NamedTuple):
    """A way in which templates want calls: the arguments as an object or as text, no content as null or as ``""``."""

    arguments: Literal["object", "text"]
    no_content: Literal[""] | None

    def message(self, message: Message) -> dict[str, Any]:
        """Return *message* as a template of this form takes it."""
        if not message.tool_calls:
            return _plain(message)
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": self._arguments(call)}}
            for call in message.tool_calls
        ]
        return {"role": message.role, "content": message.text or self.no_content, "tool_calls": calls}

    def _arguments(self, call: ToolCall) -> Any:
        if self.arguments == "text":
            return call.arguments
        try:
            return json.loads(call.arguments)
        except ValueError:  # a client may send back what it was not given
            return call.arguments


_FORMS = [_NativeForm(arguments, content) for arguments in ("object", "text") for content in ("", None)]

_EXAMPLE_ARGUMENTS = '{"parameter": "value"}'
_INTRODUCTION = (
    "You may call functions. To call one, end your answer with the call, in exactly this form, and write nothing "
    "after it:"
)
_RULES = (
    "The arguments are one valid JSON object that fits the function's parameters. For several calls write several of "
    "them, one after the other. The results are given to you before you go on. If no function is needed, answer as "
    "usual.\n\nThe functions:"
)

_SECOND_CALL_TEXT = "probe_text_2"
_PROBE_CALLS = [
    ToolCall(id=f"call_{'abc'[index]}", name=f"probe_{index}", arguments=f'{{"argument_{index}": {index}}}')
    for index in range(3)
]
_PROBE = [
    Message("user", "Hi"),
    Message("assistant", "probe_text_1", tool_calls=tuple(_PROBE_CALLS[:2])),
    Message("tool", "result_0", tool_call_id="call_a"),
    Message("tool", "result_1", tool_call_id="call_b"),
    Message("assistant", _SECOND_CALL_TEXT),
    Message("user", "Hi"),
    Message("assistant", "", tool_calls=tuple(_PROBE_CALLS[2:])),
    Message("tool", "result_2", tool_call_id="call_c"),
]
_EXPECTED = re.compile(
    r".*probe_text_1.*probe_0.*\{\"argument_0\": ?0\}.*probe_1.*\{\"argument_1\": ?1\}.*result_0.*result_1"
    r".*probe_text_2.*probe_2.*\{\"argument_2\": ?2\}.*result_2.*",
    re.DOTALL,
)


def _is_well_formed(text: str) -> bool:
    """Whether a template wrote all of the probe, once and in order, with its marks in pairs."""
    once = [_SECOND_CALL_TEXT, "probe_text_1", *(f"{word}_{i}" for word in ("probe", "result") for i in range(3))]
    if not _EXPECTED.fullmatch(text) or any(text.count(word) != 1 for word in once):
        return False
    lists = text.count(CALLS_BEGIN), text.count(CALLS_END)
    outputs = text.count(_OUTPUTS_BEGIN), text.count(_OUTPUTS_END)
    return lists in {(0, 0), (2, 2)} and outputs in {(0, 0), (2, 2)}


def _in_hermes_words(messages: Sequence[Message]) -> ShapedTurns:
    """Put calls into the assistant's text and results into the user's."""
    dicts: Dicts = []
    results: list[str] = []
    for message in messages:
        if message.role == "tool":
            results.append(f"<tool_response>\n{message.text}\n</tool_response>")
            continue
        said = [message.text] if message.text else []
        if message.role == "user":
            said, results = [*results, *said], []
        elif results:
            dicts.append({"role": "user", "content": "\n".join(results)})
            results = []
        if message.tool_calls:
            said.append(_hermes_calls(message.tool_calls))
        dicts.append({"role": message.role, "content": "\n".join(said)})
    if results:
        dicts.append({"role": "user", "content": "\n".join(results)})
    return ShapedTurns(messages=dicts)


def _runs(messages: Iterable[Message]) -> Iterator[Message | list[Message]]:
    """Yield messages, and as lists those that begin with calls and go on to the next message of somebody else."""
    run: list[Message] = []
    for message in messages:
        if message.role == "tool" or message.tool_calls or (run and message.role == "assistant"):
            run.append(message)
            continue
        if run:
            yield run
            run = []
        yield message
    if run:
        yield run


def _sorted_results(results: list[Message], places: dict[str, int]) -> list[Message]:
    if any(result.tool_call_id not in places for result in results):
        return results
    return sorted(results, key=lambda result: places[result.tool_call_id or ""])


def _with_system(messages: list[Message], text: str) -> list[Message]:
    """Add *text* to the last system message: R1's template keeps no other."""
    if not text:
        return messages
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "system":
            joined = Message("system", f"{messages[index].text}\n\n{text}".lstrip("\n"))
            return [*messages[:index], joined, *messages[index + 1 :]]
    return [Message("system", text), *messages]


def _plain(message: Message) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    return told


def _without_schema(tool: str) -> str:
    return json.dumps({"function": {"name": json.loads(tool)["function"]["name"]}})


def _command(must_call: bool | str) -> str:
    if isinstance(must_call, str):
        return f"Call the function {must_call} in this turn, whatever is asked; do not answer without it."
    return "Call at least one of the functions in this turn, whatever is asked; do not answer without it."


def _r1_calls(calls: Sequence[ToolCall]) -> str:
    bodies = (f"{CALL_BEGIN}function{SEPARATOR}{call.name}\n```json\n{call.arguments}\n```{CALL_END}" for call in calls)
    return CALLS_BEGIN + "\n".join(bodies) + CALLS_END


def _hermes_calls(calls: Sequence[ToolCall]) -> str:
    bodies = (f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}' for call in calls)
    return "\n".join(f"{HERMES_BEGIN}\n{body}\n{HERMES_END}" for body in bodies)


def _word() -> str:
    # Nobody can have written it; a template may trim, and passes it on.
    return f"[turn-{secrets.token_hex(16)}]"
