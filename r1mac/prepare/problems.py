"""Problems whose answers can be checked: are they still right, do thoughts end, do they go in circles?"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from r1mac.engine.control import Control
from r1mac.engine.events import Event, Finished, Notice, TextDelta
from r1mac.engine.request import GenerateRequest, Message, Sampling
from r1mac.errors import BadPrompts

SHIPPED = Path(__file__).parent / "problems.jsonl"

_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
# A number with a sign that stands for itself, and maybe separators of thousands.
_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|(?<![\w.])[-\u2212]?\d+(?:\.\d+)?")


class Problem(NamedTuple):
    """A question and the number that answers it."""

    prompt: str
    answer: float


class Speaker(Protocol):
    """A conversation with a model."""

    def generate(self, request: GenerateRequest, control: Control | None = None) -> Iterator[Event]:
        """Yield events; the last is Finished."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What became of one problem.

    Attributes:
        right: the answer's last number is the one.
        has_thought: there was a thought.
        closed: the model ended its thought by itself.
        looped: the thought or the answer went in circles.
        written_tokens: of both.
    """

    right: bool
    has_thought: bool
    closed: bool
    looped: bool
    written_tokens: int


def parse_problems(text: str, where: str) -> list[Problem]:
    """Return the problems of a file that has one a line: a JSON object with ``prompt`` and ``answer``, a number.

    Raises:
        BadPrompts: a line is not like that, or there is none.
    """
    found = [_problem(number, line, where) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not found:
        raise BadPrompts(f"{where} has no problem", hint='a line is such as {"prompt": "What is 2 + 2?", "answer": 4}')
    return found


def digest_of(problems: Iterable[Problem]) -> str:
    """Return one digest of all *problems*."""
    return hashlib.sha256(json.dumps([list(problem) for problem in problems]).encode()).hexdigest()


def answered_number(answer: str) -> float | None:
    """Return the number that an answer ends with: what it puts in a box, else its last number."""
    answer = answer.replace("{,}", ",").replace(r"\,", ",")
    boxed = _BOXED.findall(answer)
    numbers = _NUMBER.findall(boxed[-1] if boxed else answer)
    return float(numbers[-1].replace(",", "").replace("\u2212", "-")) if numbers else None


def put_problems(
    problems: Sequence[Problem], new_speaker: Callable[[], Speaker], *, seeds: int, most_tokens: int
) -> Iterator[Reply]:
    """Yield what becomes of each problem, in turn for each seed, in a conversation of its own.

    Args:
        problems: what to ask.
        new_speaker: begins a conversation.
        seeds: how many replies each problem gets.
        most_tokens: of a reply, thought included; a thought that would leave no room for an answer is closed.
    """
    for seed in range(1, seeds + 1):
        for problem in problems:
            request = GenerateRequest(
                messages=(Message("user", problem.prompt),), max_tokens=most_tokens, sampling=Sampling(seed=seed)
            )
            yield reply_to(problem, new_speaker().generate(request))


def reply_to(problem: Problem, events: Iterable[Event]) -> Reply:
    """Return what became of *problem*, by the events of its reply."""
    answer: list[str] = []
    kinds: set[str] = set()
    has_thought, written = False, 0
    for event in events:
        match event:
            case TextDelta(channel="think"):
                has_thought = True
            case TextDelta(text=text):
                answer.append(text)
            case Notice(kind=kind):
                kinds.add(kind)
            case Finished(reason=reason, stats=stats):
                written = stats.generated_tokens
                kinds.add(reason)
    said = "".join(answer).strip()
    return Reply(
        right=answered_number(said) == problem.answer,
        has_thought=has_thought,
        closed=has_thought and bool(said) and not kinds & {"landing", "loop"},
        looped="loop" in kinds,
        written_tokens=written,
    )


def _problem(number: int, line: str, where: str) -> Problem:
    try:
        data = json.loads(line)
        prompt, answer = data["prompt"], data["answer"]
    except (ValueError, KeyError, TypeError, RecursionError):
        prompt = answer = None
    if not isinstance(prompt, str) or type(answer) not in {int, float}:
        raise BadPrompts(
            f"line {number} of {where} is no problem with a number for an answer",
            hint='a line is such as {"prompt": "What is 2 + 2?", "answer": 4}',
        )
    return Problem(prompt, float(answer))
