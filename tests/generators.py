"""Generators that are run to their end."""

from collections.abc import Generator
from typing import Any, TypeVar

Step = TypeVar("Step")
Value = TypeVar("Value")


def told_and_value(steps: Generator[Step, None, Value]) -> tuple[list[Step], Value]:
    """Run a generator to its end; return what it told on its way, and its value."""
    told: list[Step] = []
    while True:
        try:
            told.append(next(steps))
        except StopIteration as stop:
            return told, stop.value


def value_of(steps: Generator[Any, None, Value]) -> Value:
    """Run a generator to its end and return its value."""
    return told_and_value(steps)[1]
