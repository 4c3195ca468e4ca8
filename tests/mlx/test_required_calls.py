"""A model that must call a function does: its answer is held to the form in which its family writes calls."""

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import mlx.core as mx
import pytest

from r1mac.engine.batch import Batch
from r1mac.engine.constraint import Constraint
from r1mac.engine.events import Event, Finished, TextDelta, ToolCalled
from r1mac.engine.load import Engine
from r1mac.engine.prompt import PromptTemplate
from r1mac.engine.request import Message
from r1mac.engine.tokenizer import Tokenizer
from r1mac.engine.tool_calls import ToolCallEvents, ToolCallSplitter
from r1mac.errors import BadAnswerFormat
from tests.checkpoints import write_tokenizer
from tests.sessions import finished, request, session_of, text, thinker

TEMPLATES = Path(__file__).parents[1] / "templates"
FAMILIES = ["r1-2025-01", "r1-2025-02", "r1-2025-02-tools", "r1-0528", "v3.1-tools", "qwen3-tools", "chatml"]
WEATHER = {
    "type": "object",
    "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}, "unit": {"enum": ["C", "F"]}},
    "required": ["days", "unit"],
    "additionalProperties": False,
}
CLOCK = {"type": "object", "properties": {}, "additionalProperties": False}
# What no grammar can be made of: any object will do.
ODD = {"type": "object", "properties": {"n": {"type": "integer", "not": {"multipleOf": 7}}}}
ASK = (Message("user", "How warm is it?"),)


def _tool(name: str, parameters: object = None) -> str:
    function = {"name": name} if parameters is None else {"name": name, "parameters": parameters}
    return json.dumps({"type": "function", "function": function})


TOOLS = (_tool("weather", WEATHER), _tool("clock", CLOCK))


def _tokenizer(folder: Path, family: str, *, marks: bool) -> Tokenizer:
    """Write a family's template, and a tokenizer that has its marks as tokens or has them not."""
    source = (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
    write_tokenizer(folder, template=source, think_tokens=family != "chatml")
    if marks:
        data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        tokens = [f"<｜tool▁{word}｜>" for word in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")]
        for token in [*tokens, "<tool_call>", "</tool_call>"]:
            like = dict(data["added_tokens"][-1], id=data["added_tokens"][-1]["id"] + 1, content=token, special=False)
            data["added_tokens"].append(like)
        (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return Tokenizer(folder)


def _any_answer(constraint: Constraint, tokenizer: Tokenizer, seed: int) -> str:
    """Return what a model without a will of its own writes under *constraint*."""
    ids: list[int] = []
    mx.random.seed(seed)
    while not constraint.finished(ids):
        assert len(ids) < 5000
        token_id = int(mx.random.categorical(constraint.mask(mx.zeros((1, 320)), ids)).item())
        if token_id in tokenizer.end_ids:
            break
        ids.append(token_id)
    return tokenizer.decode(ids)


@pytest.mark.parametrize("marks", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_is_written_is_a_call(family: str, marks: bool, tmp_path: Path) -> None:
    """In each family's form, with marks of one token or of many, an answer is calls with arguments of their schema."""
    tokenizer = _tokenizer(tmp_path, family, marks=marks)
    must = PromptTemplate(tmp_path, tokenizer).render(ASK, think=True, tools=TOOLS, must_call=True).answer_format
    assert must is not None
    constraint, schemas = Constraint(must, tokenizer), {"weather": WEATHER, "clock": CLOCK}

    for seed in range(2):
        splitter = ToolCallSplitter()
        said = [*splitter.feed(_any_answer(constraint, tokenizer, seed)), *splitter.finish()]
        calls = [call for call in said if not isinstance(call, str)]
        assert not [one for one in said if isinstance(one, str) and one.strip()]
        assert calls
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), schemas[call.name])


@pytest.mark.parametrize(
    ("tools", "must_call", "name"),
    [
        (TOOLS, "clock", "clock"),
        ((_tool("bare"),), True, "bare"),
        ((_tool("odd", ODD),), True, "odd"),
        ((_tool("word", "no schema"),), "word", "word"),
    ],
)
def test_the_function_that_was_named(tools: tuple[str, ...], must_call: bool | str, name: str, tmp_path: Path) -> None:
    """A function that is named is called, once; so is one without a schema, or with one that nobody can hold to."""
    tokenizer = _tokenizer(tmp_path, "r1-0528", marks=True)
    must = PromptTemplate(tmp_path, tokenizer).render(ASK, think=True, tools=tools, must_call=must_call).answer_format
    assert must is not None
    constraint = Constraint(must, tokenizer)

    def call(name: str) -> list[int]:
        body = f"function<｜tool▁sep｜>{name}\n```json\n{{}}\n```"
        return tokenizer.encode(
            f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{body}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        )

    assert constraint.finished(call(name))
    with pytest.raises(BadAnswerFormat):
        constraint.finished(call("weather"))


@pytest.mark.parametrize("think", [True, False])
def test_a_model_that_would_rather_talk_calls(think: bool, engines: Callable[..., Engine]) -> None:
    """After a thought in its own words the model calls, though it wanted to say something else."""
    engine = engines()
    model = thinker(engine.tokenizer.encode, "It is so.</think>", "Warm, of course.")
    asked = request(max_tokens=900, tools=TOOLS, must_call="weather", think=think)

    events: list[Event] = []
    cut = ToolCallEvents()
    for event in session_of(model, engine).generate(asked):
        events += cut.event(event)

    (called,) = [event for event in events if isinstance(event, ToolCalled)]
    jsonschema.validate(json.loads(called.call.arguments), WEATHER)
    assert called.call.name == "weather"
    assert text(events, "think") == ("It is so." if think else "")
    assert text(events, "answer").strip() == ""
    assert finished(events).reason == "stop"


def test_replies_side_by_side_call(engines: Callable[..., Engine]) -> None:
    """In a batch too, beside a reply that may say what it likes."""
    engine = engines()
    batch = Batch(
        engine.model, engine.tokenizer, engine.template, parallel=2, context_tokens=2000, prefill_step_tokens=256
    )
    called = batch.submit(request(max_tokens=900, tools=TOOLS[:1], must_call="weather", think=False))
    free = batch.submit(request(max_tokens=20))
    texts = {called: "", free: ""}
    ends: dict[int, Finished] = {}
    while len(batch):
        for ticket, event in batch.step():
            if isinstance(event, TextDelta) and event.channel == "answer":
                texts[ticket] += event.text
            if isinstance(event, Finished):
                ends[ticket] = event
    batch.close()

    splitter = ToolCallSplitter()
    said = [*splitter.feed(texts[called]), *splitter.finish()]
    assert [call.name for call in said if not isinstance(call, str)] == ["weather"]
    assert ends[called].reason == "stop"
    assert free in ends
