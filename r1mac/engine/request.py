"""What generation is asked."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. An assistant's text is its answer, without the thought."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: the nucleus: the likeliest tokens whose probabilities reach this.
        top_k: at most so many of the likeliest tokens; 0 for all.
        min_p: only tokens at least this times as likely as the likeliest.
        repetition_penalty: logits of tokens that were written are divided by it, or multiplied if negative.
        presence_penalty: taken from the logit of every token that was written.
        frequency_penalty: taken from it for each time that it was written.
        logit_bias: what is added to the logits of single tokens.
        seed: the same seed gives the same text.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """What an answer must look like; the thought before it stays free.

    Attributes:
        kind: ``json_schema`` (*text* is a JSON schema; ``{}`` for any JSON), ``regex`` or ``grammar`` (Lark).
    """

    kind: Literal["json_schema", "regex", "grammar"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """A conversation to be continued.

    Attributes:
        messages: the whole conversation; the last message is the user's.
        max_tokens: most tokens to write, thought included.
        think: False asks the model to answer at once.
        think_tokens: most tokens of thought; then the thought is closed and the model answers.
        think_seconds: most seconds of thought, likewise.
        stop: texts that end the answer where they begin; they are not part of it.
        logprobs: how many alternatives to tell for each token, 0 for the token alone; None tells nothing.
        answer_format: what the answer must look like.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    think: bool = True
    think_tokens: int | None = None
    think_seconds: float | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    answer_format: AnswerFormat | None = None
