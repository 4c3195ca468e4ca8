"""An answer held to its format: random models write what the format allows and nothing else."""

import json
import re
from collections.abc import Sequence
from typing import Any

import jsonschema
import mlx.core as mx
import numpy as np
import pytest

from r1mac.engine.constraint import Constraint
from r1mac.engine.grammar import check
from r1mac.engine.request import AnswerFormat, Sampling
from r1mac.engine.sampling import Sampler
from r1mac.engine.tokenizer import Tokenizer
from r1mac.errors import BadAnswerFormat
from tests.checkpoints import write_tokenizer

# More columns than the tokenizer has tokens, as most models have.
VOCABULARY = 320

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["é", "🙂", "中文"]}, "maxItems": 3},
        "home": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "home"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"enum": ["yes", "no", "é🙂", 3, None]},
    {"type": "number", "minimum": -1.5, "maximum": 2.5},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 3}]},
    {"$defs": {"n": {"type": "integer", "minimum": 5, "maximum": 17}}, "type": "array", "items": {"$ref": "#/$defs/n"}},
]


@pytest.fixture(scope="module", name="tokenizer")
def _tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


def _schema(schema: Any) -> AnswerFormat:
    return AnswerFormat(kind="json_schema", text=json.dumps(schema))


def _logits(seed: int, position: int) -> mx.array:
    """Return what a model without any sense says at one place."""
    values = np.random.default_rng([seed, position]).normal(size=VOCABULARY) * 2
    return mx.array(values.astype(np.float32)[None])


def _write(answer_format: AnswerFormat, tokenizer: Tokenizer, *, seed: int, limit: int = 600) -> tuple[str, bool]:
    """Return the answer of a senseless model that is held to a format, and whether it came to an end."""
    constraint, sampler = Constraint(answer_format, tokenizer), Sampler(Sampling(temperature=1.0, top_p=1.0, seed=seed))
    written: list[int] = []
    while len(written) < limit:
        logits = constraint.mask(_logits(seed, len(written)), written)
        token = int(sampler.choose(logits, len(written)).item())
        if token in tokenizer.end_ids:
            return tokenizer.decode(written), True
        written.append(token)
        if constraint.finished(written):
            return tokenizer.decode(written), True
    return tokenizer.decode(written), False


def _allowed(constraint: Constraint, answer_ids: Sequence[int], **more: bool) -> set[int]:
    row = np.array(constraint.mask(mx.zeros((1, VOCABULARY)), answer_ids, **more))[0]
    return set(np.flatnonzero(np.isfinite(row)).tolist())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: next(iter(schema)))
def test_json_answers_are_what_the_schema_says(schema: dict[str, Any], seed: int, tokenizer: Tokenizer) -> None:
    """A finished answer is JSON that the schema's own validator accepts, whatever the model would have said."""
    text, complete = _write(_schema(schema), tokenizer, seed=seed)

    assert complete
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("seed", range(30))
def test_any_json_is_json(seed: int, tokenizer: Tokenizer) -> None:
    """The empty schema allows every JSON value; an answer that came to its end can be read."""
    text, complete = _write(_schema({}), tokenizer, seed=seed)

    if complete:
        json.loads(text)
    else:
        assert len(text) > 100  # a string without end, which max_tokens cuts


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "pattern",
    [
        r"[0-9]{3}-[0-9]{4}",
        r"(yes|no|maybe)",
        r"[a-zé🙂中]{1,6}!",
        r"\d{1,3}(\.\d{1,2})?",
        r"a?b{2,5}c*d",
        r"line\none",
    ],
)
def test_answers_match_their_regular_expression(pattern: str, seed: int, tokenizer: Tokenizer) -> None:
    """The whole answer, but for line breaks before it, matches the expression."""
    text, complete = _write(AnswerFormat(kind="regex", text=pattern), tokenizer, seed=seed)

    assert complete
    assert re.fullmatch(pattern, text.lstrip("\n"))


@pytest.mark.parametrize("seed", range(5))
def test_answers_follow_their_grammar(seed: int, tokenizer: Tokenizer) -> None:
    """A Lark grammar with a rule that contains itself is followed to its end: every bracket is closed."""
    grammar = 'start: sum\nsum: term ("+" term)~0..2\nterm: /[0-9]/ | "(" sum ")"\n'

    text, complete = _write(AnswerFormat(kind="grammar", text=grammar), tokenizer, seed=seed, limit=4000)

    if complete:
        assert re.fullmatch(r"[0-9+()]+", text.lstrip("\n"))
        assert text.count("(") == text.count(")")
        assert "++" not in text
    else:
        assert text.count("(") > text.count(")")


def test_when_the_answer_is_complete_only_the_end_may_come(tokenizer: Tokenizer) -> None:
    """After the last letter of a format nothing but an end token is left, though the model wants something else."""
    constraint = Constraint(AnswerFormat(kind="regex", text="ab"), tokenizer)
    answer = tokenizer.encode("ab")

    assert not constraint.finished(answer[:1])
    assert _allowed(constraint, answer[:1]) == {answer[1]}
    assert constraint.finished(answer)
    assert _allowed(constraint, answer) == set(tokenizer.end_ids)


def test_an_answer_may_end_where_it_may_also_go_on(tokenizer: Tokenizer) -> None:
    """Where the format is satisfied already, the end is one of the choices."""
    constraint = Constraint(AnswerFormat(kind="regex", text="[0-9]+"), tokenizer)
    digits = {tokenizer.encode(digit)[0] for digit in "0123456789"}

    assert not _allowed(constraint, []) & tokenizer.end_ids
    assert _allowed(constraint, tokenizer.encode("7")) == digits | tokenizer.end_ids
    assert not constraint.finished(tokenizer.encode("7"))


def test_line_breaks_before_the_answer_belong_to_the_thought(tokenizer: Tokenizer) -> None:
    """The two line breaks that R1 writes after its thought may come, no third, and none after the answer began."""
    constraint = Constraint(_schema({"type": "boolean"}), tokenizer)
    (line_break,), true = tokenizer.encode("\n"), tokenizer.encode("true")

    assert line_break in _allowed(constraint, [])
    assert line_break in _allowed(constraint, [line_break])
    assert line_break not in _allowed(constraint, [line_break] * 2)
    assert line_break not in _allowed(constraint, true[:2])
    assert constraint.finished([line_break, line_break, *true])


def test_a_model_may_still_open_its_thought(tokenizer: Tokenizer) -> None:
    """A model whose template does not open the thought may do so instead of answering, and only then."""
    constraint = Constraint(_schema({"type": "boolean"}), tokenizer)
    think = tokenizer.token_id("<think>")

    assert think in _allowed(constraint, [], may_think=True)
    assert think not in _allowed(constraint, [])
    assert think not in _allowed(constraint, tokenizer.encode("t"), may_think=True)


@pytest.mark.parametrize("kept", [0, 1, 4, 9])
def test_an_answer_may_be_taken_back_and_begun_again(kept: int, tokenizer: Tokenizer) -> None:
    """Given other tokens than before, longer or shorter, a constraint says what a fresh one says."""
    constraint = Constraint(_schema(PERSON), tokenizer)
    first, other = tokenizer.encode('{"name": "ab", "age": 7'), tokenizer.encode('{"name": "ab", "age": 12')
    _allowed(constraint, first)

    for answer in (first[:kept], other, first):
        assert _allowed(constraint, answer) == _allowed(Constraint(_schema(PERSON), tokenizer), answer)


@pytest.mark.parametrize("columns", [262, 320, 1000])
def test_columns_beyond_the_tokenizer_are_never_chosen(columns: int, tokenizer: Tokenizer) -> None:
    """Logits may have more columns than there are tokens; those have no text, and are ruled out."""
    constraint = Constraint(AnswerFormat(kind="regex", text=".*"), tokenizer)

    masked = np.array(constraint.mask(mx.zeros((1, columns)), tokenizer.encode("x")))

    assert masked.shape == (1, columns)
    assert np.isfinite(masked).sum() > 100
    assert not np.isfinite(masked[0, tokenizer.vocab_size :]).any()


def test_blanks_do_not_go_on_for_ever(tokenizer: Tokenizer) -> None:
    """JSON allows blanks without end between two words; a model that would write nothing else cannot."""
    constraint = Constraint(_schema(PERSON), tokenizer)
    (blank,) = tokenizer.encode(" ")
    answer = tokenizer.encode("{")
    while blank in _allowed(constraint, answer) and len(answer) < 200:
        answer.append(blank)

    assert 16 < len(answer) < 50


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("json_schema", "{", "JSON schema for the answer cannot be used: it is not JSON"),
        ("json_schema", "[" * 100_000, "it is not JSON"),
        ("json_schema", "5", "must be an object, {} for any JSON, and is 5"),
        ("json_schema", "false", "must be an object"),
        ("json_schema", '{"type": "objct"}', "Invalid type: objct"),
        ("json_schema", '{"$ref": "#/nope"}', "'/nope' does not exist"),
        ("json_schema", '{"not": {"type": "string"}}', "Unimplemented keys"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "minimum .5. is greater than maximum .3."),
        ("regex", "(", "regular expression for the answer cannot be used: .*unclosed group"),
        ("regex", "a(?=b)", "look-around"),
        ("grammar", 'begin: "a"', "grammar for the answer cannot be used: no start rule"),
        ("grammar", "start: other", 'unknown name: "other"'),
    ],
)
def test_what_cannot_be_held_to_is_refused_in_one_sentence(
    kind: Any, text: str, words: str, tokenizer: Tokenizer
) -> None:
    """A wrong format is refused with its reason on one line and where to read on, before and with a model alike."""
    for refuse in (check, lambda answer_format: Constraint(answer_format, tokenizer)):
        with pytest.raises(BadAnswerFormat, match=words) as caught:
            refuse(AnswerFormat(kind=kind, text=text))

        assert "\n" not in caught.value.problem
        assert len(caught.value.problem) < 400
        assert caught.value.hint


def test_a_grammar_that_nothing_satisfies_is_refused(tokenizer: Tokenizer) -> None:
    """A grammar that never comes to a letter is an error in one sentence, not an answer of any letters."""
    with pytest.raises(BadAnswerFormat, match=r"no text whatever satisfies it|cannot be used"):
        _allowed(Constraint(AnswerFormat(kind="grammar", text="start: start"), tokenizer), [])


@pytest.mark.parametrize("schema", [*SCHEMAS, {}, True, {"type": "object"}])
def test_what_can_be_held_to_passes_the_check(schema: Any) -> None:
    """The check before a model is loaded refuses nothing that works with one."""
    check(_schema(schema))
