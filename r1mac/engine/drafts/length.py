"""How many tokens are worth drafting: what came true so far, against what verifying costs."""

from collections.abc import Callable, Sequence

# The rate must beat plain decoding by this much: costs were measured on a machine that does other things too.
_LEAST_GAIN = 1.1
# So many of the latest drafts make up an estimate.
_MEMORY = 24.0


class Acceptance:
    """How often drafted tokens were right lately, apart for each grade of evidence.

    Args:
        priors: the chance that is assumed of each grade before anything was seen.
        prior_drafts: how many drafts an assumption counts for.
    """

    def __init__(self, priors: Sequence[float], *, prior_drafts: float = 4.0) -> None:
        self._drafts = [prior_drafts] * len(priors)
        self._right = [prior * prior_drafts for prior in priors]

    def chance(self, grade: int) -> float:
        """Return how likely a token drafted with evidence of *grade* is right."""
        return self._right[grade] / self._drafts[grade]

    def learn(self, grade: int, right: bool) -> None:
        """Note whether a token drafted with evidence of *grade* was right."""
        if self._drafts[grade] >= _MEMORY:
            self._right[grade] *= (_MEMORY - 1) / self._drafts[grade]
            self._drafts[grade] = _MEMORY - 1
        self._drafts[grade] += 1
        self._right[grade] += right


def best_length(chances: Sequence[float], cost: Callable[[int], float], *, drafting_cost: float = 0.0) -> int:
    """Return how many tokens to draft so that the most tokens come for each unit of time; 0 where plain decoding wins.

    A draft of k tokens yields one token and, for each i up to k, one more if the first i drafted ones are right.

    Args:
        chances: of each drafted token, that it is right if all before it are.
        cost: of reading so many tokens at once, as a multiple of reading one.
        drafting_cost: of drafting one token, in the same unit.
    """
    best, best_rate = 0, _LEAST_GAIN
    expected, all_right = 1.0, 1.0
    for length, chance in enumerate(chances, start=1):
        all_right *= chance
        expected += all_right
        rate = expected / (cost(1 + length) + length * drafting_cost)
        if rate > best_rate:
            best, best_rate = length, rate
    return best
