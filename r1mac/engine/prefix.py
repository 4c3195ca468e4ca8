"""What two lists of tokens have in common."""

from collections.abc import Sequence


def shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens two lists begin with in common."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
