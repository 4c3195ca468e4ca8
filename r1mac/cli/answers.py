"""How an answer is to be written: the options that say it, and what they mean for a model."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from r1mac.settings import Settings

if TYPE_CHECKING:
    from r1mac.engine.request import AnswerFormat, Sampling
    from r1mac.engine.tokenizer import Tokenizer

_MOST_ALTERNATIVES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the command line says of the answers.

    Attributes:
        preferences: what config.toml may say too; None is «not said».
        penalties: sampling with what is said of penalties and seed; the rest is not decided yet.
        biases: tokens, by text or number as they were written, with their bias.
        stop: texts that end an answer.
        answer_format: what an answer must look like.
        logprobs: how many alternatives to tell for each token; None tells nothing.
    """

    preferences: dict[str, Any]
    penalties: "Sampling"
    biases: tuple[tuple[str, float], ...]
    stop: tuple[str, ...]
    answer_format: "AnswerFormat | None"
    logprobs: int | None

    def sampling(self, chosen: Settings, tokenizer: "Tokenizer") -> "Sampling":
        """Return how tokens are chosen with the settings of this run, by the model with *tokenizer*."""
        from dataclasses import replace

        said = {name: getattr(chosen, name) for name in self.preferences}
        bias = tuple((_token_id(text, tokenizer), value) for text, value in self.biases)
        try:
            return replace(
                self.penalties, **{name: value for name, value in said.items() if value is not None}, logit_bias=bias
            )
        except ValueError as error:
            raise click.UsageError(f"{error}.") from error


def options(command: Callable[..., int]) -> Callable[..., int]:
    """Give *command* the options, and what they say as one argument ``answers``."""

    @functools.wraps(command)
    def gathered(**said: Any) -> int:
        taken = {parameter: said.pop(parameter) for parameter in _PARAMETERS}
        return command(answers=_answers(**taken), **said)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


_OPTIONS = (
    click.option(
        "--temperature", type=click.FloatRange(0, 2), help="0 is greedy, which makes R1 loop.  [default: 0.6]"
    ),
    click.option(
        "--top-p", type=click.FloatRange(0, 1, min_open=True), help="Nucleus of the sampler.  [default: 0.95]"
    ),
    click.option("--top-k", type=click.IntRange(min=0), metavar="N", help="Only the N likeliest tokens; 0 for all."),
    click.option("--min-p", type=click.FloatRange(0, 1), help="Only tokens so likely beside the likeliest."),
    click.option(
        "--repetition-penalty",
        type=click.FloatRange(0, 10, min_open=True),
        help="Divides the logits of tokens that were written; 1 is none.",
    ),
    click.option(
        "--presence-penalty", type=click.FloatRange(-2, 2), help="Taken from the logit of what was written; 0 is none."
    ),
    click.option("--frequency-penalty", type=click.FloatRange(-2, 2), help="Likewise, for each time it was written."),
    click.option(
        "--logit-bias",
        "biases",
        multiple=True,
        metavar="TOKEN=VALUE",
        help='Make a token likelier (up to 100) or less so (-100 rules it out): its number, or its text ("7" in '
        "double quotes where that is a number).",
    ),
    click.option("--seed", type=int, help="Make the answer repeatable."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer where TEXT would begin."),
    click.option("--json-schema", metavar="FILE|JSON", help="Hold the answer to a JSON schema; {} for any JSON."),
    click.option("--regex", metavar="TEXT", help="Hold the answer to a regular expression."),
    click.option(
        "--grammar",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        help="Hold the answer to a grammar in Lark's notation.",
    ),
    click.option(
        "--logprobs",
        type=click.IntRange(0, _MOST_ALTERNATIVES),
        metavar="N",
        help="With --json: how likely each token was, and the N likeliest in its place.",
    ),
)
_PARAMETERS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "biases",
    "seed",
    "stop",
    "json_schema",
    "regex",
    "grammar",
    "logprobs",
)


def _answers(
    *,
    repetition_penalty: float | None,
    presence_penalty: float | None,
    frequency_penalty: float | None,
    seed: int | None,
    biases: tuple[str, ...],
    stop: tuple[str, ...],
    json_schema: str | None,
    regex: str | None,
    grammar: str | None,
    logprobs: int | None,
    **preferences: float | None,
) -> Answers:
    from r1mac.engine.request import Sampling

    if not all(stop):
        raise click.UsageError("--stop needs a text: an empty one would end every answer before it begins.")
    penalties: dict[str, Any] = {
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
    }
    try:
        sampling = Sampling(seed=seed, **{name: value for name, value in penalties.items() if value is not None})
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    return Answers(
        preferences=preferences,
        penalties=sampling,
        biases=tuple(map(_bias, biases)),
        stop=tuple(map(_utf8, stop)),
        answer_format=_answer_format(json_schema=json_schema, regex=regex, grammar=grammar),
        logprobs=logprobs,
    )


def _answer_format(*, json_schema: str | None, regex: str | None, grammar: str | None) -> "AnswerFormat | None":
    """Return what the answer must look like, checked before any model is loaded."""
    said = [value for value in (json_schema, regex, grammar) if value is not None]
    if not said:
        return None
    if len(said) > 1:
        raise click.UsageError("An answer has one format: --json-schema, --regex or --grammar.")
    from r1mac.engine.grammar import check
    from r1mac.engine.request import AnswerFormat

    if regex is not None:
        answer_format = AnswerFormat(kind="regex", text=_utf8(regex))
    elif json_schema is not None:
        answer_format = AnswerFormat(kind="json_schema", text=_schema_text(json_schema))
    else:
        answer_format = AnswerFormat(kind="grammar", text=_read(said[0], "--grammar"))
    check(answer_format)
    return answer_format


def _schema_text(said: str) -> str:
    """Return a schema that was written out, or the text of its file."""
    return _utf8(said) if said.lstrip().startswith("{") else _read(said, "--json-schema")


def _read(path: str, option: str) -> str:
    from pathlib import Path

    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
        written_out = " (a schema that is written out begins with {)" if option == "--json-schema" else ""
        raise click.UsageError(f"{option} cannot read {click.format_filename(path)}: {reason}{written_out}.") from error


def _bias(said: str) -> tuple[str, float]:
    """Return token and value of TOKEN=VALUE; the token's text may have an equals sign too."""
    token, equals, value = said.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    # Nothing is less or more than what is no number.
    if not equals or not token or not abs(number) <= 100:  # noqa: PLR2004 - the range of logit biases
        raise click.UsageError(f"--logit-bias wants TOKEN=VALUE with a value from -100 to 100, and is {_utf8(said)!r}.")
    return _utf8(token), number


def _token_id(text: str, tokenizer: "Tokenizer") -> int:
    """Return the number of the token that *text* names: a number, or a text with or without double quotes."""
    if text.isascii() and text.isdigit():
        if int(text) >= tokenizer.vocab_size:
            raise click.UsageError(f"--logit-bias names token {text}, and the model has {tokenizer.vocab_size}.")
        return int(text)
    quoted = len(text) > 2 and text[0] == text[-1] == '"'  # noqa: PLR2004 - more than the quotes
    plain = text[1:-1] if quoted else text
    special = tokenizer.token_id(plain)
    token_ids = tokenizer.encode(plain) if special is None else [special]
    if len(token_ids) != 1:
        raise click.UsageError(
            f"--logit-bias takes one token, and {plain!r} is {len(token_ids)} of this model: {token_ids}."
        )
    return token_ids[0]


def _utf8(text: str) -> str:
    """Return an argument as text: one that is not UTF-8 reaches Python as lone surrogates."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
