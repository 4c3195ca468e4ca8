"""How long the steps of a prompt become that joins running replies."""

import pytest

from r1mac.engine.joining import JoiningSteps


def _longest_gap(steps: JoiningSteps, *, token_seconds: float, read_seconds_a_token: float, count: int = 200) -> float:
    """Return the longest step once the first ones are over, as a multiple of a token's time."""
    for _ in range(5):
        steps.wrote(token_seconds)
    taken = []
    for _ in range(count):
        tokens = steps.tokens(reading=1)
        taken.append(token_seconds + tokens * read_seconds_a_token)
        steps.read(tokens, taken[-1])
    return max(taken[10:]) / token_seconds


@pytest.mark.parametrize(
    ("token_seconds", "read_seconds_a_token"),
    [(0.05, 0.005), (0.2, 0.02), (0.02, 0.0002), (0.5, 0.02)],
)
def test_those_who_write_are_hardly_held_up(token_seconds: float, read_seconds_a_token: float) -> None:
    """However fast the computer is, a joining prompt makes the gaps three times as long, not thirty."""
    steps = JoiningSteps(first_tokens=32, most_tokens=2048)

    longest = _longest_gap(steps, token_seconds=token_seconds, read_seconds_a_token=read_seconds_a_token)

    assert 2 < longest <= 3.2


def test_a_step_is_never_longer_than_memory_was_planned_for() -> None:
    steps = JoiningSteps(first_tokens=32, most_tokens=128)
    _longest_gap(steps, token_seconds=1.0, read_seconds_a_token=1e-6)

    assert steps.tokens(reading=1) == steps.tokens(reading=16) == 128


def test_one_slow_step_changes_little() -> None:
    """A step that another program held up is not taken for what steps cost."""
    steps = JoiningSteps(first_tokens=32, most_tokens=2048)
    _longest_gap(steps, token_seconds=0.1, read_seconds_a_token=0.002)
    before = steps.tokens(reading=1)
    steps.read(before, 60.0)

    assert steps.tokens(reading=1) >= before // 2
    for _ in range(3):
        tokens = steps.tokens(reading=1)
        steps.read(tokens, 0.1 + 0.002 * tokens)
    assert steps.tokens(reading=1) == pytest.approx(before, rel=0.2)


def test_more_prompts_are_read_in_longer_steps() -> None:
    """Who waits to be read counts as well: sixteen prompts are not read one token each."""
    steps = JoiningSteps(first_tokens=32, most_tokens=2048)

    assert steps.tokens(reading=8) == 8 * steps.tokens(reading=1)
