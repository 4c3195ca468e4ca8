"""The options that say how an answer is to be written, and what becomes of them for one model."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from r1mac.cli.answers import Answers, options
from r1mac.engine.request import AnswerFormat, Sampling
from r1mac.engine.tokenizer import Tokenizer
from r1mac.errors import BadAnswerFormat
from r1mac.settings import Settings
from tests.checkpoints import write_tokenizer


@pytest.fixture(scope="module", name="tokenizer")
def _tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


def _said(*arguments: str) -> Answers:
    """Return what the options make of a command line; what they refuse is raised."""
    said: list[Answers] = []

    @click.command
    @options
    def command(answers: Answers) -> int:
        said.append(answers)
        return 0

    CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    return said[0]


def _sampling(tokenizer: Tokenizer, *arguments: str, **preferred: Any) -> Sampling:
    answers = _said(*arguments)
    said = {name: value for name, value in answers.preferences.items() if value is not None}
    return answers.sampling(Settings(**{**preferred, **said}), tokenizer)


def test_nothing_said_is_deepseeks_advice(tokenizer: Tokenizer) -> None:
    """Without options a model samples as its makers advise: temperature 0.6, nucleus 0.95, nothing else."""
    answers = _said()

    assert _sampling(tokenizer) == Sampling(temperature=0.6, top_p=0.95)
    assert (answers.stop, answers.answer_format, answers.logprobs) == ((), None, None)


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (("--temperature", "0"), {"temperature": 0}),
        (("--top-p", "0.5"), {"top_p": 0.5}),
        (("--top-k", "40"), {"top_k": 40}),
        (("--min-p", "0.05"), {"min_p": 0.05}),
        (("--repetition-penalty", "1.1"), {"repetition_penalty": 1.1}),
        (("--presence-penalty", "-1"), {"presence_penalty": -1}),
        (("--frequency-penalty", "0.3"), {"frequency_penalty": 0.3}),
        (("--seed", "-7"), {"seed": -7}),
    ],
)
def test_each_option_says_its_own(arguments: tuple[str, str], changes: dict[str, Any], tokenizer: Tokenizer) -> None:
    """An option changes what it names and nothing else."""
    assert _sampling(tokenizer, *arguments) == Sampling(**changes)


def test_settings_hold_where_nothing_is_said(tokenizer: Tokenizer) -> None:
    """What config.toml prefers is taken, 0 included."""
    preferred = {"temperature": 0.0, "top_p": 0.9, "top_k": 20, "min_p": 0.01}

    assert _sampling(tokenizer, **preferred) == Sampling(**preferred)


@pytest.mark.parametrize(
    ("said", "text"),
    [("x=1.5", "x"), ("==1.5", "="), ('"7"=1.5', "7"), ('"=1.5', '"'), (" =1.5", " "), ("</think>=1.5", "</think>")],
)
def test_a_bias_names_its_token_by_text(said: str, text: str, tokenizer: Tokenizer) -> None:
    """The text of one token names it, special ones too; double quotes make a text of a number."""
    ((token_id, value),) = _sampling(tokenizer, "--logit-bias", said).logit_bias

    assert (tokenizer.decode([token_id]), value) == (text, 1.5)


def test_a_bias_names_its_token_by_number(tokenizer: Tokenizer) -> None:
    """A number is a token's own, and several biases are all taken."""
    assert _sampling(tokenizer, "--logit-bias", "7=-100", "--logit-bias", "9=3").logit_bias == ((7, -100), (9, 3))


@pytest.mark.parametrize(
    ("biases", "words"),
    [
        (("hello=3",), "takes one token, and 'hello' is 5 of this model"),
        (("999999=3",), "names token 999999, and the model has 262"),
        (("7=1", "7=2"), "must name every token once"),
    ],
)
def test_a_bias_is_of_one_token_of_this_model(biases: tuple[str, ...], words: str, tokenizer: Tokenizer) -> None:
    """A text of several tokens, a number that the model lacks and a token named twice are refused."""
    arguments = [part for bias in biases for part in ("--logit-bias", bias)]

    with pytest.raises(click.UsageError, match=words):
        _sampling(tokenizer, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--top-k", "-1"), "-1 is not in the range"),
        (("--min-p", "1.5"), "1.5 is not in the range"),
        (("--presence-penalty", "3"), "3.0 is not in the range"),
        (("--frequency-penalty", "nan"), "frequency_penalty must be from -2 to 2, and is nan"),
        (("--repetition-penalty", "0"), "not in the range"),
        (("--logit-bias", "x"), "wants TOKEN=VALUE with a value from -100 to 100, and is 'x'"),
        (("--logit-bias", "x=200"), "and is 'x=200'"),
        (("--logit-bias", "x=nan"), "and is 'x=nan'"),
        (("--logit-bias", "=3"), "and is '=3'"),
        (("--stop", ""), "--stop needs a text"),
        (("--regex", "a", "--json-schema", "{}"), "An answer has one format"),
        (("--json-schema", "nowhere.json"), "cannot read nowhere.json: No such file"),
        (("--grammar", "nowhere.lark"), "does not exist"),
        (("--logprobs", "21"), "21 is not in the range"),
    ],
)
def test_what_means_nothing_is_a_wrong_command_line(arguments: tuple[str, ...], words: str) -> None:
    """A value that means nothing is refused with a sentence that names it."""
    with pytest.raises(click.UsageError, match=words):
        _said(*arguments)


def test_stops_keep_their_order_and_text() -> None:
    """Every --stop is taken, as it was written."""
    assert _said("--stop", "END", "--stop", "\n\n", "--stop", " é").stop == ("END", "\n\n", " é")


def test_a_format_comes_from_the_line_or_a_file(tmp_path: Path) -> None:
    """A schema is written out or in a file, an expression written out, a grammar in a file."""
    (tmp_path / "s.json").write_text('{"type": "integer"}\n', encoding="utf-8")
    (tmp_path / "g.lark").write_text('start: "é"\n', encoding="utf-8")

    assert _said("--json-schema", ' {"type": "null"}').answer_format == AnswerFormat(
        kind="json_schema", text=' {"type": "null"}'
    )
    assert _said("--json-schema", str(tmp_path / "s.json")).answer_format == AnswerFormat(
        kind="json_schema", text='{"type": "integer"}\n'
    )
    assert _said("--regex", "[0-9]+").answer_format == AnswerFormat(kind="regex", text="[0-9]+")
    assert _said("--grammar", str(tmp_path / "g.lark")).answer_format == AnswerFormat(
        kind="grammar", text='start: "é"\n'
    )


@pytest.mark.parametrize(
    ("option", "content", "words"),
    [
        ("--json-schema", "no schema", "it is not JSON: Expecting value"),
        ("--json-schema", "[]", "must be an object"),
        ("--grammar", "no grammar", "the grammar for the answer cannot be used"),
    ],
)
def test_a_file_that_is_no_format_is_refused(option: str, content: str, words: str, tmp_path: Path) -> None:
    """What a file says is checked at once, before a model is loaded."""
    path = tmp_path / "format"
    path.write_text(content, encoding="utf-8")

    with pytest.raises(BadAnswerFormat, match=words):
        _said(option, str(path))


@pytest.mark.parametrize("option", ["--json-schema", "--grammar"])
def test_a_file_that_is_no_text_is_refused(option: str, tmp_path: Path) -> None:
    """A file of bytes that are no text is a wrong command line, not a bug."""
    path = tmp_path / "bytes"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(click.UsageError, match="it is not UTF-8 text"):
        _said(option, str(path))
