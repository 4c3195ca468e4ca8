"""Replies side by side that must know each token: formats, probabilities, penalties; each as it is alone."""

import json
from collections.abc import Callable, Sequence

import mlx.core as mx
import pytest

from r1mac.engine.batch import Batch
from r1mac.engine.constraint import Constraint
from r1mac.engine.control import Control
from r1mac.engine.events import ChosenToken, Event
from r1mac.engine.load import Engine
from r1mac.engine.request import AnswerFormat, GenerateRequest, Message, Sampling
from r1mac.errors import BadAnswerFormat, R1MacError
from tests.sessions import ScriptedModel, finished, request, session_of, text, thinker

FOUR = AnswerFormat(kind="regex", text="[0-9]{4}")


def _batch(engine: Engine, model: object = None, *, parallel: int = 4) -> Batch:
    return Batch(
        model or engine.model,  # type: ignore[arg-type]
        engine.tokenizer,
        engine.template,
        parallel=parallel,
        context_tokens=2000,
        prefill_step_tokens=64,
    )


def _answers(batch: Batch, asked: list[GenerateRequest]) -> list[list[Event | R1MacError]]:
    """Return the events of each reply, all written together."""
    tickets = [batch.submit(one) for one in asked]
    events: dict[int, list[Event | R1MacError]] = {ticket: [] for ticket in tickets}
    while len(batch):
        for ticket, event in batch.step():
            events[ticket].append(event)
    batch.close()
    return [events[ticket] for ticket in tickets]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"answer_format": AnswerFormat(kind="json_schema", text='{"enum": ["red"]}'), "think": False}),
        ("deepseek_v3", {"answer_format": FOUR, "think_tokens": 6, "max_tokens": 80}),
        ("llama", {"logprobs": 2}),
        ("deepseek_v3", {"logprobs": 1, "sampling": Sampling(temperature=1.0, seed=5)}),
        ("llama", {"sampling": Sampling(temperature=0, repetition_penalty=1.3)}),
        ("llama", {"sampling": Sampling(temperature=0.8, presence_penalty=1.0, frequency_penalty=0.5, seed=3)}),
        ("llama", {"stop": ("e",), "think": False}),
    ],
)
def test_a_reply_among_others_is_what_it_is_alone(
    kind: str, changes: dict[str, object], engines: Callable[..., Engine]
) -> None:
    """Text, probabilities and end are those of a session, whatever the neighbours are asked."""
    engine = engines(kind)
    asked = request(**{"max_tokens": 24, **changes})
    neighbours = [request((Message("user", "Hi"),)), request((Message("user", "Name it."),), logprobs=1)]

    first, *_ = _answers(_batch(engine), [asked, *neighbours])

    alone = list(session_of(engine.model, engine).generate(asked))
    assert text(first) == text(alone)  # type: ignore[arg-type]
    assert finished(first).reason == finished(alone).reason  # type: ignore[arg-type]
    told, expected = ([one for one in events if isinstance(one, ChosenToken)] for events in (first, alone))
    assert [one.chosen.token_id for one in told] == [one.chosen.token_id for one in expected]
    assert [one.chosen.logprob for one in told] == pytest.approx([one.chosen.logprob for one in expected], abs=1e-3)
    assert [[other.token_id for other in one.likeliest] for one in told] == [
        [other.token_id for other in one.likeliest] for one in expected
    ]


def test_the_thought_stays_free_and_the_answer_is_held(engines: Callable[..., Engine]) -> None:
    """Each row's answer has its own format, after thoughts of different lengths in the model's own words."""
    engine = engines()
    model = thinker(engine.tokenizer.encode, "It is so.</think>", "Four, of course.")
    schema = {
        "type": "object",
        "properties": {"four": {"type": "boolean"}},
        "required": ["four"],
        "additionalProperties": False,
    }
    asked = [
        request(max_tokens=200, answer_format=AnswerFormat(kind="json_schema", text=json.dumps(schema))),
        request(max_tokens=200, answer_format=FOUR),
        request(max_tokens=200),
    ]

    held, digits, free = _answers(_batch(engine, model), asked)

    assert [text(events, "think") for events in (held, digits, free)] == ["It is so."] * 3  # type: ignore[arg-type]
    assert isinstance(json.loads(text(held, "answer"))["four"], bool)  # type: ignore[arg-type]
    assert text(digits, "answer").isdecimal()  # type: ignore[arg-type]
    assert text(free, "answer") == "Four, of course."  # type: ignore[arg-type]
    assert {finished(events).reason for events in (held, digits, free)} == {"stop"}  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"logprobs": 1}, {"sampling": Sampling(temperature=0, presence_penalty=0.1)}])
def test_a_format_and_a_close_look_at_each_token(changes: dict[str, object], engines: Callable[..., Engine]) -> None:
    """A session that knows each token in any case holds the answer to its format, too."""
    engine = engines()
    model = thinker(engine.tokenizer.encode, "It is so.</think>", "Four, of course.")
    asked = request(max_tokens=200, answer_format=FOUR, **changes)

    alone = list(session_of(model, engine).generate(asked))
    (among_others,) = _answers(_batch(engine, model), [asked])

    assert text(alone, "answer").isdecimal()
    assert text(among_others) == text(alone)  # type: ignore[arg-type]


def test_a_wish_for_more_thought_before_a_format(engines: Callable[..., Engine]) -> None:
    """A thought that is made longer goes on, and its answer still has the format."""
    engine = engines()
    model = thinker(engine.tokenizer.encode, "So.</think>", "Four.")
    control = Control()
    batch = _batch(engine, model)
    batch.submit(request(max_tokens=200, answer_format=FOUR, logprobs=0), control)
    control.think_more()
    events = []
    while len(batch):
        events += [event for _, event in batch.step()]

    assert text(events, "think").count("Wait") == 1  # type: ignore[arg-type]
    assert text(events, "answer").isdecimal()  # type: ignore[arg-type]
    told = [event.chosen.text for event in events if isinstance(event, ChosenToken)]
    assert "".join(told).endswith(text(events, "answer"))  # type: ignore[arg-type]


def test_a_format_that_cannot_be_used_concerns_nobody_else(engines: Callable[..., Engine]) -> None:
    """A format is refused when it is submitted, and the others are written."""
    engine = engines()
    batch = _batch(engine)
    ticket = batch.submit(request())

    with pytest.raises(BadAnswerFormat):
        batch.submit(request(answer_format=AnswerFormat(kind="regex", text="(")))

    events = []
    while len(batch):
        events += [event for one, event in batch.step() if one == ticket]
    assert text(events) == text(session_of(engine.model, engine).generate(request()))  # type: ignore[arg-type]


def test_a_format_that_fails_under_way_ends_its_reply_alone(
    engines: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grammar that grows too complex ends the reply it belongs to, with its own error; its neighbour is whole."""
    engine = engines()

    class TooComplex(Constraint):
        def mask(self, logits: mx.array, answer_ids: Sequence[int], *, may_think: bool = False) -> mx.array:
            if len(answer_ids) == 2:
                raise BadAnswerFormat("the grammar grew too complex")
            return super().mask(logits, answer_ids, may_think=may_think)

    monkeypatch.setattr("r1mac.engine.batch_row.Constraint", TooComplex)
    asked = [request(think=False, answer_format=FOUR), request(max_tokens=12)]

    failed, whole = _answers(_batch(engine), asked)

    assert isinstance(failed[-1], BadAnswerFormat)
    assert len(text(failed[:-1])) == 2  # type: ignore[arg-type]
    assert text(whole) == text(session_of(engine.model, engine).generate(asked[1]))  # type: ignore[arg-type]


def test_scripted_models_read_their_own_row(engines: Callable[..., Engine]) -> None:
    """A row's format is told from its own tokens, not from those of the row beside it."""
    engine = engines()
    digit = engine.tokenizer.encode("7")[0]
    model = ScriptedModel(lambda _: digit)

    three, two = _answers(
        _batch(engine, model),
        [request(think=False, answer_format=AnswerFormat(kind="regex", text=f"7{{{count}}}")) for count in (3, 2)],
    )

    assert (text(three), text(two)) == ("777", "77")  # type: ignore[arg-type]
