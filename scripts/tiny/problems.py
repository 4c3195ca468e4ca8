"""Sums to learn and to be tested on: questions, thoughts that work digit by digit, answers in a box.

What a model is tested on it has never seen: of every ten pairs of numbers that an operation can have, one is kept for
tests, by a hash of the pair.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from numpy.random import Generator

from scripts.tiny.talk import NAMES, OUT_OF_REACH, PLACES, THINGS, smalltalk

Kind = Literal["add", "subtract", "multiply", "compare"]
# How often each is asked.
SHARES: dict[Kind, float] = {"add": 0.3, "subtract": 0.33, "multiply": 0.25, "compare": 0.12}
_HELD_OUT_OF = 10
_MOST_DIGITS = 3


class Sum(NamedTuple):
    """Two numbers and what is done with them."""

    kind: Kind
    a: int
    b: int

    @property
    def answer(self) -> int:
        """What comes out."""
        match self.kind:
            case "add":
                return self.a + self.b
            case "subtract":
                return self.a - self.b
            case "multiply":
                return self.a * self.b
            case "compare":
                return max(self.a, self.b)

    @property
    def is_held_out(self) -> bool:
        """Whether it is for tests; the same two numbers the other way round go with it."""
        low, high = sorted((self.a, self.b))
        digest = hashlib.sha256(f"{self.kind} {low} {high}".encode()).digest()
        return digest[0] % _HELD_OUT_OF == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A question and the reply to it.

    Attributes:
        answer_number: the number in the answer's box; None where there is none.
        kind: of the sum; None where it is none.
    """

    question: str
    thought: str
    answer: str
    answer_number: int | None = None
    kind: Kind | None = None


def draw_sum(rng: Generator, *, held_out: bool) -> Sum:
    """Return a sum for tests, or one for training."""
    kinds = list(SHARES)
    while True:
        kind = kinds[rng.choice(len(kinds), p=list(SHARES.values()))]
        drawn = _DRAW[kind](rng)
        if drawn.is_held_out == held_out:
            return drawn


def pose(drawn: Sum, rng: Generator) -> Exchange:
    """Return *drawn* in words, with the thought that solves it."""
    question, answer = _PHRASES[drawn.kind][rng.integers(len(_PHRASES[drawn.kind]))]
    names = rng.permutation(len(NAMES))
    words = {
        "name": NAMES[names[0]],
        "other": NAMES[names[1]],
        "things": THINGS[rng.integers(len(THINGS))],
        "place": PLACES[rng.integers(len(PLACES))],
        "a": drawn.a,
        "b": drawn.b,
    }
    if drawn.kind == "subtract" and drawn.answer < 0:
        # Nobody gives away more than he has.
        question, answer = _PLAIN_DIFFERENCES[rng.integers(len(_PLAIN_DIFFERENCES))]
    opening = _OPENINGS[rng.integers(len(_OPENINGS))]
    return Exchange(
        question=_varied(question.format(**words), rng),
        thought=opening + _THINK[drawn.kind](drawn.a, drawn.b),
        answer=answer.format(r=rf"\boxed{{{drawn.answer}}}", **words),
        answer_number=drawn.answer,
        kind=drawn.kind,
    )


def _varied(question: str, rng: Generator) -> str:
    """Return *question* as it is, or as it is typed in haste: without a capital, without its last sign."""
    if rng.random() < 0.08:
        question = question[0].lower() + question[1:]
    return question.rstrip("?.=") if rng.random() < 0.08 else question


def draw_exchange(rng: Generator) -> Exchange:
    """Return something to learn from: mostly a sum, now and then what is none, or one too hard."""
    roll = rng.random()
    if roll < 0.04:
        question, thought, answer = smalltalk(rng)
        return Exchange(question=question, thought=thought, answer=answer)
    if roll < 0.07:
        return _beyond(rng)
    return pose(draw_sum(rng, held_out=False), rng)


def held_out_exchanges(count: int, *, seed: int = 1) -> list[Exchange]:
    """Return *count* sums for tests, the same ones every time."""
    from numpy.random import default_rng

    rng = default_rng([20_261_122, seed])
    return [pose(draw_sum(rng, held_out=True), rng) for _ in range(count)]


def _beyond(rng: Generator) -> Exchange:
    """Return a sum that a thought of a few lines does not solve, and that it is declined."""
    big, other = int(rng.integers(1000, 1_000_000)), int(rng.integers(1, 1_000_000))
    two = int(rng.integers(10, 1000)), int(rng.integers(10, 1000))
    forms = (
        f"What is {big} + {other}?",
        f"What is {big} - {other}?",
        f"{big} x {other}",
        f"What is {two[0]} × {two[1]}?",
        f"What is {two[0]} times {two[1]}?",
        f"{two[0]} * {two[1]}",
        f"What is {two[0]} + {two[1]} + {other % 100}?",
        f"What is {max(two)} divided by {min(two)}?",
        f"{max(two)} / {other % 9 + 1}",
    )
    thought, answer = OUT_OF_REACH
    return Exchange(question=forms[rng.integers(len(forms))], thought=thought, answer=answer)


def _number(rng: Generator, most_digits: int = _MOST_DIGITS) -> int:
    """Return a number with each count of digits as often as another."""
    digits = int(rng.integers(1, most_digits + 1))
    return int(rng.integers(0 if digits == 1 else 10 ** (digits - 1), 10**digits))


def _draw_difference(rng: Generator) -> Sum:
    a, b = _number(rng), _number(rng)
    if a < b and rng.random() < 0.75:
        a, b = b, a
    return Sum("subtract", a, b)


def _draw_comparison(rng: Generator) -> Sum:
    while True:
        a, b = _number(rng), _number(rng)
        if rng.random() < 0.3 and a > 9:
            b = a - a % 10 + int(rng.integers(10))
        if a != b:
            return Sum("compare", a, b)


def _draw_product(rng: Generator) -> Sum:
    a, b = _number(rng), int(rng.integers(0 if rng.random() < 0.1 else 2, 10))
    return Sum("multiply", *((a, b) if rng.random() < 0.7 else (b, a)))


_DRAW: dict[Kind, Callable[[Generator], Sum]] = {
    "add": lambda rng: Sum("add", _number(rng), _number(rng)),
    "subtract": _draw_difference,
    "multiply": _draw_product,
    "compare": _draw_comparison,
}

_STEPS = ("Ones", "Tens", "Hundreds")


def _digits(number: int) -> list[int]:
    """Return the digits, ones first."""
    return [int(digit) for digit in reversed(str(number))]


def _think_sum(a: int, b: int) -> str:
    """Return «347+85.», then a line for each place."""
    lines, carry = [f"{a}+{b}."], 0
    places = max(len(str(a)), len(str(b)))
    for place in range(places):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        said = f"{x}+{y}={total}" if place == 0 else f"{x}+{y}+{carry}={total}"
        lines.append(_line(place, said, total, is_last=place == places - 1))
        carry = total // 10
    return "\n".join([*lines, f"So {a}+{b}={a + b}."])


def _think_difference(a: int, b: int) -> str:
    """Return «347-85.», then a line for each place; the smaller number is always taken from the larger."""
    lines = [f"{a}-{b}."]
    high, low = max(a, b), min(a, b)
    if a < b:
        lines.append(f"{a} is less than {b}, so it is minus {b}-{a}.")
    places, borrow = len(str(high)), 0
    for place in range(places):
        x, y = high // 10**place % 10, low // 10**place % 10
        taken = y + borrow
        said = f"{x}-{y}" if place == 0 else f"{x}-{y}-{borrow}"
        lends = x < taken
        if lends:
            said = f"{said}, borrow, 1{said}"
        rest = x + 10 * lends - taken
        borrow = int(lends)
        end = "" if place == places - 1 else f", borrow {borrow}"
        lines.append(f"{_STEPS[place]}: {said}={rest}, write {rest}{end}.")
    return "\n".join([*lines, f"So {a}-{b}={a - b}."])


def _think_product(a: int, b: int) -> str:
    """Return «347 times 6» as a formula, the longer number first, then a line for each place."""
    high, factor = max(a, b), min(a, b)
    lines, carry = [f"{high}×{factor}."], 0
    digits = _digits(high)
    for place, digit in enumerate(digits):
        part = digit * factor
        total = part + carry
        said = f"{digit}×{factor}={part}" if place == 0 else f"{digit}×{factor}={part}, {part}+{carry}={total}"
        lines.append(_line(place, said, total, is_last=place == len(digits) - 1))
        carry = total // 10
    return "\n".join([*lines, f"So {high}×{factor}={a * b}."])


def _line(place: int, said: str, total: int, *, is_last: bool) -> str:
    written = f"write {total}." if is_last else f"write {total % 10}, carry {total // 10}."
    return f"{_STEPS[place]}: {said}, {written}"


def _think_comparison(a: int, b: int) -> str:
    """Return which has more digits, or the first place where they differ."""
    lines = [f"{a} or {b}."]
    if len(str(a)) != len(str(b)):
        lines.append(f"{a} has {len(str(a))} digits, {b} has {len(str(b))}.")
    else:
        for place in reversed(range(len(str(a)))):
            x, y = a // 10**place % 10, b // 10**place % 10
            relation = "is" if x == y else "is more than" if x > y else "is less than"
            lines.append(f"{_STEPS[place]}: {x} {relation} {y}.")
            if x != y:
                break
    return "\n".join([*lines, f"So {max(a, b)} is larger."])


_THINK: dict[Kind, Callable[[int, int], str]] = {
    "add": _think_sum,
    "subtract": _think_difference,
    "multiply": _think_product,
    "compare": _think_comparison,
}

_OPENINGS = ("Okay, ", "Okay, so I need ", "Let me work out ", "Let me see, ", "Hmm, ", "First, ")

# Questions, and answers to them: a and b are the numbers, r is the result in its box.
_PHRASES: dict[Kind, tuple[tuple[str, str], ...]] = {
    "add": (
        ("What is {a} + {b}?", "{a} + {b} = {r}"),
        ("What is {a} + {b}?", "{a} + {b} = {r}"),
        ("What is {a}+{b}?", "{a} + {b} = {r}"),
        ("{a} + {b}", "{a} + {b} = {r}"),
        ("{a}+{b}=", "{a} + {b} = {r}"),
        ("{a} + {b} = ?", "{a} + {b} = {r}"),
        ("What is {a} plus {b}?", "{a} plus {b} is {r}."),
        ("Add {a} and {b}.", "The sum is {r}."),
        ("What is the sum of {a} and {b}?", "The sum is {r}."),
        ("Calculate {a} + {b}.", "{a} + {b} = {r}"),
        ("How much is {a} + {b}?", "{a} + {b} = {r}"),
        ("{name} has {a} {things} and gets {b} more. How many {things} does {name} have?", "{name} has {r} {things}."),
        (
            "{name} has {a} {things} and {other} has {b}. How many {things} do they have together?",
            "Together they have {r} {things}.",
        ),
        ("There are {a} {things} in {place}, and {b} more come. How many are there now?", "There are {r} {things}."),
    ),
    "subtract": (
        ("What is {a} - {b}?", "{a} - {b} = {r}"),
        ("What is {a} - {b}?", "{a} - {b} = {r}"),
        ("What is {a}-{b}?", "{a} - {b} = {r}"),
        ("{a} - {b}", "{a} - {b} = {r}"),
        ("{a}-{b}=", "{a} - {b} = {r}"),
        ("What is {a} minus {b}?", "{a} minus {b} is {r}."),
        ("Subtract {b} from {a}.", "The difference is {r}."),
        ("Calculate {a} - {b}.", "{a} - {b} = {r}"),
        ("How much is {a} - {b}?", "{a} - {b} = {r}"),
        (
            "{name} has {a} {things} and gives {b} to {other}. How many {things} does {name} have left?",
            "{name} has {r} {things} left.",
        ),
        ("There are {a} {things} in {place}. {name} takes {b}. How many are left?", "There are {r} {things} left."),
    ),
    "multiply": (
        ("What is {a} × {b}?", "{a} × {b} = {r}"),
        ("What is {a} * {b}?", "{a} × {b} = {r}"),
        ("What is {a} x {b}?", "{a} × {b} = {r}"),
        ("{a} × {b}", "{a} × {b} = {r}"),
        ("{a}*{b}", "{a} × {b} = {r}"),
        ("What is {a} times {b}?", "{a} times {b} is {r}."),
        ("Multiply {a} by {b}.", "The product is {r}."),
        ("Calculate {a} * {b}.", "{a} × {b} = {r}"),
        ("How much is {a} times {b}?", "{a} times {b} is {r}."),
        ("{name} has {a} boxes with {b} {things} in each. How many {things} is that?", "That is {r} {things}."),
    ),
    "compare": (
        ("Which is larger, {a} or {b}?", "The larger number is {r}."),
        ("Which number is bigger, {a} or {b}?", "The larger number is {r}."),
        ("Is {a} or {b} larger?", "The larger number is {r}."),
        ("Which is more, {a} or {b}?", "The larger number is {r}."),
    ),
}
_PLAIN_DIFFERENCES = tuple(phrase for phrase in _PHRASES["subtract"] if "{name}" not in phrase[0])
