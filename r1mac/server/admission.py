"""Who is let in: pure decisions from the plan's numbers and the length of the queue.

First come, first served. A thought is not priced beforehand: one that comes near the end of the planned context is
closed and answered (``engine.landing``), so a prompt is refused only where no answer would have room behind it.
``safe_tokens`` says from where on thoughts would be shortened.
"""

import math

from r1mac.errors import PromptTooLong, R1MacError

# Enough for the words that close a thought, and for a short answer.
LEAST_ANSWER_TOKENS = 256
# What an answer may at least have of a context that is short itself.
_ANSWER_SHARE = 8
_UNKNOWN_WAIT_SECONDS = 10
_MOST_WAIT_SECONDS = 600


class Refused(R1MacError):
    """There is no place for a request now, and there will be later.

    Attributes:
        retry_after_seconds: when it is worth trying again.
    """

    def __init__(self, problem: str, *, hint: str | None = None, retry_after_seconds: int) -> None:
        super().__init__(problem, hint=hint)
        self.retry_after_seconds = retry_after_seconds


def require_place(
    *, waiting: int, free_slots: int, queue_limit: int, parallel: int, reply_seconds: float | None
) -> None:
    """Refuse a request if the queue is full.

    Args:
        waiting: how many wait now.
        free_slots: how many more replies could be written at once.
        queue_limit: how many may wait beside those.
        parallel: how many are written at once at most.
        reply_seconds: what a reply took lately; None before the first.

    Raises:
        Refused: with the time in which a place should come free.
    """
    if waiting - free_slots < queue_limit:
        return
    wait_seconds = _UNKNOWN_WAIT_SECONDS if reply_seconds is None else math.ceil(reply_seconds / parallel)
    raise Refused(
        f"{waiting} requests wait already, and {queue_limit} may",
        hint="try again later, or allow more with `r1mac serve --queue`",
        retry_after_seconds=min(max(wait_seconds, 1), _MOST_WAIT_SECONDS),
    )


def require_room(prompt_tokens: int, *, context_tokens: int, max_tokens: int) -> None:
    """Refuse a prompt behind which the planned context has no room for an answer.

    Raises:
        PromptTooLong: with both numbers.
    """
    least_tokens = min(LEAST_ANSWER_TOKENS, context_tokens // _ANSWER_SHARE, max_tokens)
    if prompt_tokens + least_tokens > context_tokens:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens, an answer needs at least {least_tokens}, and memory is planned "
            f"for {context_tokens}",
            hint="shorten the conversation, or choose a longer context: on the page, with POST /r1mac/context, or "
            "with `r1mac serve --context`",
        )


def safe_tokens(context_tokens: int, typical_answer_tokens: int) -> int:
    """Return how long a prompt may be so that a typical thought and its answer still have room behind it.

    Of a context that is no longer than twice what is typical, half is the prompt's.
    """
    return context_tokens - min(typical_answer_tokens, context_tokens // 2)
