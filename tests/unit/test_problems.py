"""Problems with checkable answers: what counts as right, closed, and going in circles."""

from pathlib import Path

import pytest

from r1mac.engine.events import Finished, FinishReason, Notice, TextDelta
from r1mac.engine.fake import RecitingSession
from r1mac.errors import BadPrompts
from r1mac.prepare.problems import SHIPPED, Problem, answered_number, digest_of, parse_problems, put_problems, reply_to
from tests.replies import finished

FOUR = Problem("What is 2 + 2?", 4)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("4", 4),
        ("2 + 2 is **4**.", 4),
        ("So the answer is $\\boxed{1{,}234}$", 1234),
        (r"$2^{20} = 1\,048\,576$", 1_048_576),
        ("So the answer is $\\boxed{12}$, which is 3 times 4.", 12),
        ("It costs 1,250 euros.", 1250),
        ("x = -3", -3),
        ("x = \u22123.5.", -3.5),
        ("In 2024 there were 12,5 of them", 5),
        ("twelve", None),
        ("", None),
        ("B12 vitamins", None),
    ],
)
def test_the_number_that_an_answer_ends_with(answer: str, number: float | None) -> None:
    assert answered_number(answer) == number


def _finished(reason: FinishReason) -> Finished:
    return finished(reason, generated_tokens=9)


THOUGHT = TextDelta(channel="think", text="2 and 2 are 4, not 5")


@pytest.mark.parametrize(
    ("events", "right", "closed", "looped"),
    [
        ([THOUGHT, TextDelta(channel="answer", text="It is 4."), _finished("stop")], True, True, False),
        ([THOUGHT, TextDelta(channel="answer", text="It is 5."), _finished("stop")], False, True, False),
        ([THOUGHT, _finished("length")], False, False, False),
        (
            [THOUGHT, Notice(kind="landing", text="…"), TextDelta(channel="answer", text="4"), _finished("stop")],
            True,
            False,
            False,
        ),
        (
            [THOUGHT, Notice(kind="loop", text="…"), TextDelta(channel="answer", text="4"), _finished("stop")],
            True,
            False,
            True,
        ),
        ([THOUGHT, TextDelta(channel="answer", text="4 4 4 4"), _finished("loop")], True, False, True),
        ([TextDelta(channel="answer", text="4"), _finished("stop")], True, False, False),
    ],
)
def test_what_becomes_of_a_reply(events: list[object], right: bool, closed: bool, looped: bool) -> None:
    reply = reply_to(FOUR, events)

    assert (reply.right, reply.closed, reply.looped) == (right, closed, looped)
    assert reply.has_thought == (events[0] is THOUGHT)
    assert reply.written_tokens == 9


def test_every_problem_is_put_at_every_seed_in_a_conversation_of_its_own() -> None:
    answers = ["Easy.</think>\n\n4", "Easy.</think>\n\n5", "Hm, 4", "No.</think>\n\n7"]
    sessions = [RecitingSession([answer]) for answer in answers]
    speakers = iter(sessions)

    replies = list(put_problems([FOUR, Problem("What is 3 + 4?", 7)], lambda: next(speakers), seeds=2, most_tokens=100))

    assert [reply.right for reply in replies] == [True, False, False, True]
    assert [reply.closed for reply in replies] == [True, True, False, True]
    asked = [session.requests[0] for session in sessions]
    assert [request.sampling.seed for request in asked] == [1, 1, 2, 2]
    assert [request.messages[0].text for request in asked] == ["What is 2 + 2?", "What is 3 + 4?"] * 2


def test_shipped_problems_can_be_read() -> None:
    problems = parse_problems(SHIPPED.read_text(encoding="utf-8"), SHIPPED.name)

    assert len(problems) == 12
    assert len({problem.prompt for problem in problems}) == 12
    assert len(digest_of(problems)) == 64
    assert digest_of(problems) != digest_of(problems[:-1])


@pytest.mark.parametrize(
    "text", ["", "What is 2 + 2?", '{"prompt": "x"}', '{"prompt": "x", "answer": "4"}', '{"prompt": 1, "answer": 4}']
)
def test_a_file_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadPrompts, match=r"mine\.jsonl"):
        parse_problems(text, "mine.jsonl")
    assert Path(SHIPPED).is_file()
