"""What generation is asked."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A function that a model calls.

    Attributes:
        id: what the result names it by.
        name: the function's.
        arguments: a JSON object, as text.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. An assistant's text is its answer, without the thought.

    Attributes:
        role: whose turn it is; ``tool`` for the result of one function.
        text: what is said.
        tool_calls: the functions that an assistant calls after it.
        tool_call_id: the call that a result belongs to; None for the next one that has no result yet.
    """

    role: Literal["system", "user", "assistant", "tool"]
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


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

    Raises:
        ValueError: a value is outside what it can mean; the sentence says which and why.
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

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            # No comparison with a value that is not a number is true.
            if not least <= value <= most:
                raise ValueError(f"{name} must be from {least:g} to {most:g}, and is {value:g}")
        if self.top_p == 0 or self.repetition_penalty == 0:
            name = "top_p" if self.top_p == 0 else "repetition_penalty"
            raise ValueError(f"{name} must be more than 0: with 0 no token could be chosen")
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, and is {self.temperature:g}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (for all tokens) or more, and is {self.top_k}")
        token_ids = [token_id for token_id, _ in self.logit_bias]
        if len(set(token_ids)) < len(token_ids) or min(token_ids, default=0) < 0:
            raise ValueError("logit_bias must name every token once, by a number from 0 on")
        beyond = next((bias for _, bias in self.logit_bias if not -_MOST_BIAS <= bias <= _MOST_BIAS), None)
        if beyond is not None:
            raise ValueError(f"a logit_bias must be from {-_MOST_BIAS:g} to {_MOST_BIAS:g}, and one is {beyond:g}")


# OpenAI's ranges where it has them: more would leave one token or none. A bias of -100 rules a token out in practice.
_RANGES: dict[str, tuple[float, float]] = {
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
_MOST_BIAS = 100.0


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
        messages: the whole conversation; the last message is the user's, or a function's result.
        raw_prompt: a text to be continued as it stands, in place of *messages*; all that follows is the answer.
        max_tokens: most tokens to write, thought included.
        think: False asks the model to answer at once.
        think_tokens: most tokens of thought; then the thought is closed and the model answers.
        think_seconds: most seconds of thought, likewise.
        stop: texts that end the answer where they begin; they are not part of it.
        logprobs: how many alternatives to tell for each token, 0 for the token alone; None tells nothing.
        answer_format: what the answer must look like.
        tools: the functions that the model may call, each as JSON in OpenAI's shape.
        must_call: whether its answer is held to calls of them; a name says of which, once.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    raw_prompt: str | None = None
    sampling: Sampling = Sampling()
    think: bool = True
    think_tokens: int | None = None
    think_seconds: float | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    answer_format: AnswerFormat | None = None
    tools: tuple[str, ...] = ()
    must_call: bool | str = False
