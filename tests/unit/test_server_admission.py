"""Who is let in, in numbers."""

import pytest

from r1mac.errors import PromptTooLong
from r1mac.server.admission import LEAST_ANSWER_TOKENS, Refused, require_place, require_room, safe_tokens


@pytest.mark.parametrize(("waiting", "free_slots"), [(0, 0), (31, 0), (35, 4), (0, 4)])
def test_there_is_a_place(waiting: int, free_slots: int) -> None:
    """Those who can begin at once do not count against the queue."""
    require_place(waiting=waiting, free_slots=free_slots, queue_limit=32, parallel=4, reply_seconds=None)


@pytest.mark.parametrize(
    ("reply_seconds", "parallel", "retry_after_seconds"),
    [(None, 4, 10), (60.0, 4, 15), (0.01, 4, 1), (86_400.0, 1, 600)],
)
def test_a_full_queue_says_when_a_place_comes_free(
    reply_seconds: float | None, parallel: int, retry_after_seconds: int
) -> None:
    with pytest.raises(Refused, match="32 requests wait already, and 32 may") as refused:
        require_place(waiting=32, free_slots=0, queue_limit=32, parallel=parallel, reply_seconds=reply_seconds)
    assert refused.value.retry_after_seconds == retry_after_seconds


def test_a_prompt_needs_room_behind_it() -> None:
    room = 8192 - LEAST_ANSWER_TOKENS
    require_room(room, context_tokens=8192, max_tokens=1000)
    with pytest.raises(PromptTooLong, match=rf"{room + 1} tokens.* {LEAST_ANSWER_TOKENS}.* 8192"):
        require_room(room + 1, context_tokens=8192, max_tokens=1000)


def test_who_wants_little_needs_little_room() -> None:
    require_room(8191, context_tokens=8192, max_tokens=1)
    require_room(448, context_tokens=512, max_tokens=1000)
    with pytest.raises(PromptTooLong):
        require_room(8192, context_tokens=8192, max_tokens=1)


def test_a_safe_prompt_leaves_room_for_thought_and_answer() -> None:
    assert safe_tokens(32_768, 12_000) == 20_768
    assert safe_tokens(8192, 12_000) == 4096
