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
    """How a token is chosen. Temperature 0 takes the likeliest; a seed makes a run repeatable."""

    temperature: float = 0.6
    top_p: float = 0.95
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """A conversation to be continued.

    Attributes:
        messages: the whole conversation; the last message is the user's.
        max_tokens: most tokens to write, thought included.
        think: False asks the model to answer at once.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    think: bool = True
