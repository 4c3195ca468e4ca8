"""How much of a prompt to read between two tokens of those who write already."""

# Beside a token of the others, a step of one prompt may take so many times as long.
_TIMES_A_TOKEN = 2.0
# Of what was measured, how much the latest counts.
_LATEST_SHARE = 0.3
_LEAST_TOKENS = 4
_GROWTH = 2


class JoiningSteps:
    """Finds the step at which those who write are hardly held up, from the times that steps took.

    A step of so many tokens costs tens of times as much on one computer as on another, and grows with the context.
    The step grows with the number of prompts: who asked waits, too.
    """

    def __init__(self, *, first_tokens: int, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._tokens = float(min(first_tokens, most_tokens))
        self._writing_seconds: float | None = None

    def tokens(self, *, reading: int) -> int:
        """Return how many tokens to read at the next step, of *reading* prompts together."""
        return min(round(self._tokens * reading), self._most_tokens)

    def wrote(self, seconds: float) -> None:
        """Note a step in which only tokens were written."""
        known = self._writing_seconds
        share = 1.0 if known is None else _LATEST_SHARE
        self._writing_seconds = (1 - share) * (known or 0.0) + share * seconds

    def read(self, tokens: int, seconds: float) -> None:
        """Note a step in which *tokens* of prompts were read, too."""
        if self._writing_seconds is None or not tokens:
            return
        reading_seconds = max(seconds - self._writing_seconds, 1e-6)
        wanted = _TIMES_A_TOKEN * self._writing_seconds / reading_seconds * tokens
        # A step that something else held up says little of the next one.
        wanted = min(max(wanted, self._tokens / _GROWTH), self._tokens * _GROWTH, self._most_tokens)
        self._tokens = max(wanted, min(_LEAST_TOKENS, self._most_tokens))
