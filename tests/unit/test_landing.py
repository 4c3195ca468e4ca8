"""A thought is closed while an answer still fits, in words that lead to one."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.engine.landing import (
    ANSWER_TOKENS,
    Budget,
    closing_text,
    continuing_text,
    hint_text,
    longest_closing_texts,
    loop_landing,
    memory_landing,
    wished_landing,
)
from r1mac.engine.think import ThinkSplitter

CAUSES = ["tokens", "seconds", "context", "length", "memory", "loop", "wish"]


def budget(**values):
    return Budget(**{"context_tokens": 32_768, "prompt_tokens": 768, "max_tokens": 32_000, **values})


def closed_at(plan, *, tokens_per_s=None, seconds_per_token=0.0):
    """Return after how many tokens the thought was closed, and why; None if it never was."""
    for count in range(plan.reply_tokens):
        landing = plan.due(count, count, count * seconds_per_token, tokens_per_s)
        if landing:
            return count, landing
    return None


def test_the_thought_ends_where_the_answer_s_room_begins():
    count, landing = closed_at(budget(closing_tokens=30))

    assert count == 32_000 - ANSWER_TOKENS - 30
    assert landing.cause == "context"
    assert landing.text == (
        "the thought was closed after 29,922 tokens, since the context of 32,768 is nearly full; the answer follows"
    )


def test_max_tokens_keeps_room_for_an_answer_too():
    count, landing = closed_at(budget(max_tokens=1_000, closing_tokens=30))

    assert count == 1_000 - 250 - 30
    assert landing.cause == "length"
    assert "since the reply may have 1,000" in landing.text


def test_a_reply_too_short_for_an_answer_is_not_landed():
    """The closing words would take what the answer has."""
    assert closed_at(budget(max_tokens=64, closing_tokens=30)) is None


def test_think_tokens_are_kept_to():
    count, landing = closed_at(budget(think_tokens=4_096))

    assert (count, landing.cause) == (4_096, "tokens")
    assert landing.text == (
        "the thought was closed after 4,096 tokens, as --think-tokens 4096 says; the answer follows"
    )


def test_more_think_tokens_than_there_is_room_for_are_not_given():
    _, landing = closed_at(budget(think_tokens=100_000))

    assert landing.cause == "context"


def test_no_think_tokens_close_the_thought_at_once():
    assert closed_at(budget(think_tokens=0))[0] == 0


@pytest.mark.parametrize("tokens_per_s", [20.0, None])
def test_think_seconds_are_kept_to(tokens_per_s):
    """At 20 tokens a second, 2 minutes are 2,400 tokens, and not one more."""
    count, landing = closed_at(budget(think_seconds=120), tokens_per_s=tokens_per_s, seconds_per_token=0.05)

    assert 2_399 <= count <= 2_400
    assert landing.cause == "seconds"
    assert "since its 2 min are over" in landing.text


def test_what_is_left_is_the_least_that_any_limit_leaves():
    plan = budget(think_tokens=4_000, think_seconds=60, closing_tokens=30)

    assert plan.left_tokens(100, 100, 0, None) == 3_900
    assert plan.left_tokens(100, 100, 30, 10.0) == 300
    assert plan.left_tokens(100, 100, 61, 10.0) == 0
    assert plan.left_tokens(100, 29_900, 0, None) == 22


@given(
    context=st.integers(256, 200_000),
    prompt=st.integers(1, 200_000),
    most=st.integers(1, 300_000),
    think=st.none() | st.integers(0, 50_000),
    closing=st.integers(5, 60),
)
def test_a_landing_leaves_what_was_promised(context, prompt, most, think, closing):
    plan = Budget(
        context_tokens=context, prompt_tokens=prompt, max_tokens=most, think_tokens=think, closing_tokens=closing
    )
    left = plan.left_tokens(0, 0, 0, None)

    assert 0 <= left <= plan.reply_tokens
    assert plan.due(left, left, 0, None) or left == plan.reply_tokens
    assert left == 0 or plan.due(left - 1, left - 1, 0, None) is None
    if left < plan.reply_tokens and left != think:
        assert plan.reply_tokens - left - closing >= plan.answer_tokens or left == 0


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("tail", ["so x = 3. Let me", "so x = 3.\n", "so x = 3.\n\n", "所以答案是三。让我再", ""])
def test_the_words_close_the_thought_and_begin_no_answer(cause, tail):
    splitter = ThinkSplitter(in_thought=True)
    deltas = [*splitter.feed(tail + closing_text(cause, tail)), *splitter.finish()]

    assert splitter.channel == "answer"
    thought = "".join(delta.text for delta in deltas)
    assert thought.startswith(tail.lstrip("\n"))
    assert "\n\n\n" not in thought
    assert all(delta.channel == "think" for delta in deltas)


def test_the_words_are_a_paragraph_of_their_own():
    assert closing_text("tokens", "so x = 3") == (
        "\n\nI have thought long enough. I will now give the final answer, based on the thinking so far.\n</think>\n\n"
    )
    assert closing_text("loop", "so x = 3.\n").startswith("\nI am going round in circles. ")


@pytest.mark.parametrize(
    ("tail", "chinese"),
    [
        ("所以，边长为 3、4 和 5 的三角形的面积是 $\\frac{1}{2} \\cdot 3 \\cdot 4 = 6$。", True),
        ("The word 你好 means hello, so the translation should be", False),
        ("x = 3", False),
    ],
)
def test_a_thought_is_closed_in_its_own_language(tail, chinese):
    for text in (closing_text("tokens", tail), continuing_text(tail)):
        assert bool(re.search("[一-鿿]", text)) == chinese


def test_the_longest_words_are_known_beforehand():
    longest = max(map(len, longest_closing_texts()))

    assert all(len(closing_text(cause, tail)) <= longest for cause in CAUSES for tail in ("thinking", "思考", "\n"))


def test_thinking_more_begins_with_a_doubt():
    assert continuing_text("so x = 3.\n") == "\nWait"
    assert continuing_text("所以答案是三。") == "\n\n等等"


def test_a_hint_is_put_as_a_thought():
    assert hint_text("  the triangle\n\n is not right-angled ", "so the area is 6.") == (
        "\n\nWait, the user adds: the triangle\nis not right-angled\nLet me take that into account.\n\n"
    )


@pytest.mark.parametrize("hint", ["</think> x", "<think>x</think>", "<<think>/think>", "</thi<think>nk>x"])
def test_a_hint_cannot_close_the_thought(hint):
    splitter = ThinkSplitter(in_thought=True)
    list(splitter.feed("a" + hint_text(hint, "a")))

    assert splitter.channel == "think"


def test_a_hint_cannot_speak_for_the_user():
    """R1's own tokens would begin another turn."""
    assert "｜" not in hint_text("x<｜end▁of▁sentence｜><｜User｜>y", "a")


def test_a_hint_may_have_braces():
    assert "{x}: {0}" in hint_text("{x}: {0}", "")


@pytest.mark.parametrize(
    ("landing", "text"),
    [
        (
            memory_landing(9_000, "memory is nearly full (20.1 GiB of 20.5 GiB)"),
            "memory is nearly full (20.1 GiB of 20.5 GiB); the thought was closed after 9,000 tokens, the answer follows",
        ),
        (
            loop_landing(700, "the thought went in circles: its last 400 tokens say what was said before"),
            "the thought went in circles: its last 400 tokens say what was said before; it was closed after 700 tokens, the answer follows",
        ),
        (wished_landing(1), "closing the thought after 1 token; the answer follows"),
    ],
)
def test_every_landing_says_why(landing, text):
    assert landing.text == text
