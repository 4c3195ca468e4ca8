"""The sums that the tiny model learns from and is tested on."""

import math
import re

import numpy as np
import pytest

from r1mac.prepare.problems import answered_number
from scripts.tiny.batches import draw_tokenizer, prompt_text, reply_text
from scripts.tiny.problems import Sum, draw_exchange, draw_sum, held_out_exchanges, pose

# What stands before an equals sign in a thought, and the number behind it.
FORMULA = re.compile(r"(?<![\d×+-])(\d+(?:[-+×]\d+)+)=(-?\d+)")


def worked_out(formula):
    """Return what a formula of one kind of sign makes: a sum, a difference, a product."""
    if "×" in formula:
        return math.prod(map(int, formula.split("×")))
    return sum(map(int, re.findall(r"[-+]?\d+", formula)))


def sums_in(text):
    """Return the formulas that stand before an equals sign: what each makes, and what the text says."""
    return [(worked_out(formula), int(said)) for formula, said in FORMULA.findall(text)]


def test_what_is_tested_is_never_trained():
    """Sums for tests and sums for training have no pair of numbers in common, in whatever order."""
    rng = np.random.default_rng(3)

    drawn = {
        held_out: {
            (one.kind, *sorted((one.a, one.b))) for one in (draw_sum(rng, held_out=held_out) for _ in range(1500))
        }
        for held_out in (True, False)
    }

    assert len(drawn[True]) > 500
    assert len(drawn[False]) > 500
    assert not drawn[True] & drawn[False]


def test_every_line_of_a_thought_is_true():
    """All that a thought says of sums, place by place, is what they make; so is the answer."""
    rng = np.random.default_rng(4)

    for _ in range(1000):
        drawn = draw_sum(rng, held_out=False)
        exchange = pose(drawn, rng)

        assert all(computed == said for computed, said in sums_in(exchange.thought)), exchange.thought
        assert exchange.answer_number == drawn.answer
        assert answered_number(exchange.answer) == drawn.answer
        if drawn.kind != "compare":
            assert sums_in(exchange.thought)[-1][1] == drawn.answer


@pytest.mark.parametrize(
    ("drawn", "lines"),
    [
        (Sum("add", 47, 85), ["Ones: 7+5=12, write 2, carry 1.", "Tens: 4+8+1=13, write 13.", "So 47+85=132."]),
        (
            Sum("subtract", 302, 47),
            [
                "Ones: 2-7, borrow, 12-7=5, write 5, borrow 1.",
                "Tens: 0-4-1, borrow, 10-4-1=5, write 5, borrow 1.",
                "Hundreds: 3-0-1=2, write 2.",
                "So 302-47=255.",
            ],
        ),
        (Sum("subtract", 3, 12), ["3 is less than 12, so it is minus 12-3.", "So 3-12=-9."]),
        (Sum("multiply", 6, 47), ["Ones: 7×6=42, write 2, carry 4.", "Tens: 4×6=24, 24+4=28, write 28."]),
        (Sum("compare", 385, 347), ["Hundreds: 3 is 3.", "Tens: 8 is more than 4.", "So 385 is larger."]),
    ],
)
def test_a_thought_works_place_by_place(drawn, lines):
    """Carries and borrowed tens are told as they are done on paper."""
    thought = pose(drawn, np.random.default_rng(0)).thought

    assert [line for line in thought.splitlines() if line in lines] == lines


def test_the_sums_for_tests_are_the_same_every_time():
    """A measurement can be repeated: the same sums, and others with another seed."""
    assert held_out_exchanges(20) == held_out_exchanges(20)
    assert held_out_exchanges(20) == held_out_exchanges(40)[:20]
    assert held_out_exchanges(20) != held_out_exchanges(20, seed=2)


def test_the_tokenizer_gives_back_any_text_and_has_one_token_for_a_digit():
    """Conversations take few tokens, digits one each, and no text is lost."""
    tokenizer = draw_tokenizer(1)
    rng = np.random.default_rng(5)
    exchanges = [draw_exchange(rng) for _ in range(200)]
    texts = [prompt_text(exchange.question) + reply_text(exchange) for exchange in exchanges]
    texts += ["a  b\n\tc é 中文 🙂 x", "<think>\n\n</think>\n\n"]

    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]

    assert [tokenizer.decode(one.ids, skip_special_tokens=False) for one in encoded] == texts
    assert np.mean([len(one.ids) for one in encoded]) < 110
    assert all(
        len(re.findall(r"\d", token)) <= 1 and (not re.search(r"\d", token) or token.isdecimal())
        for one in encoded
        for token in one.tokens
    )
