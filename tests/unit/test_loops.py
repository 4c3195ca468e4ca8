"""Loops are noticed, word for word or nearly so; text that repeats for a reason is not."""

import itertools
import json
import random
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1mac.engine.loops import ANSWER_PATIENCE, LoopDetector

SURE, UNSURE = 0.02, 1.2
WORDS = (  # noqa: SIM905
    "the of number result step check prime even then so therefore we have that square root equals value case sum term "
    "both sides factor remainder divide again correct maybe wrong because since if else first second third"
).split()
_IDS: dict[str, int] = {}


def tokens(text):
    """Cut text as R1's tokenizers do: words with the space before them, digits one by one."""
    return [_IDS.setdefault(piece, len(_IDS)) for piece in re.findall(r"\d| ?[^\W\d]+|\s+|[^\w\s]", text)]


def prose(seed, count):
    """Sentences that say nothing twice, at least *count* tokens."""
    source = random.Random(seed)
    sentences = []
    while len(tokens(" ".join(sentences))) < count:
        sentences.append(" ".join(source.choice(WORDS) for _ in range(source.randint(6, 18))).capitalize() + ".")
    return " ".join(sentences) + " "


def noticed_after(token_ids, *, entropy=SURE, patience=1.0):
    """Return how many tokens were read when the loop was certain, and the loop; or None."""
    detector = LoopDetector(patience=patience)
    for count, token_id in enumerate(token_ids, 1):
        loop = detector.feed(token_id, entropy if detector.wants_entropy else None)
        if loop:
            return count, loop
    return None


@pytest.mark.parametrize("period", [10, 17, 40, 90, 150, 220, 300])
def test_a_passage_that_comes_word_for_word_is_noticed(period):
    """At the latest when it comes for the fifth time, or after 450 tokens."""
    before = tokens(prose(1, 700))
    passage = tokens(prose(2, period))[:period]

    count, loop = noticed_after(before + passage * (4_000 // period))

    assert count - len(before) <= max(450, 4 * period)
    assert loop.period_tokens == period
    assert str(period) in loop.text


@pytest.mark.parametrize("piece", ["-", " Wait", "0", " no,", " and so on"])
def test_one_word_for_ever_is_noticed(piece):
    before = tokens(prose(1, 300))

    count, _ = noticed_after(before + tokens(piece * 3_000))

    assert count - len(before) <= 900


def test_a_loop_with_a_counter_is_noticed():
    before = tokens(prose(3, 600))
    loop = "".join(
        f"Wait, let me check this again. If we take case {count}, the two sides must be equal, but then the remainder is "
        "not zero, so this is a contradiction and I need to look at the next case. Maybe I made a mistake somewhere. "
        for count in range(1, 100)
    )

    count, _ = noticed_after(before + tokens(loop))

    assert count - len(before) <= 900


@pytest.mark.parametrize(("variants", "most_tokens"), [(1, 500), (2, 2_000), (3, 3_500)])
def test_paragraphs_in_changing_words_are_noticed(variants, most_tokens):
    """What a low-bit R1 does: the same five thoughts, each in one of a few wordings."""
    wordings = [
        ["Wait, let me double-check that.", "Hold on, let me verify this again.", "Hmm, let me re-check this step."],
        [
            "The triangle has sides 3, 4 and 5, so the area is 6.",
            "Since the sides are 3, 4 and 5, the area must be 6.",
            "With sides of 3, 4 and 5 the area comes out as 6.",
        ],
        [
            "But the problem says that the perimeter is 13, which contradicts the sum of 12.",
            "However, the perimeter is stated as 13, while the sum of the sides is 12.",
            "But the perimeter should be 13 and not 12, so something is off.",
        ],
        [
            "Maybe I misread the problem. Let me read it again.",
            "Perhaps I misunderstood the question. Let me go back to it.",
            "Maybe the problem statement means something else. Let me think again.",
        ],
    ]
    source = random.Random(5)
    before = tokens(prose(4, 600))
    text = "\n\n".join(" ".join(source.choice(wording[:variants]) for wording in wordings) for _ in range(150))

    count, _ = noticed_after(before + tokens(text))

    assert count - len(before) <= most_tokens


@settings(max_examples=30, deadline=None)
@given(period=st.integers(12, 300), seed=st.integers(0, 10**6), changes=st.integers(0, 2), before=st.integers(0, 2_000))
def test_any_loop_with_few_changes_is_noticed(period, seed, changes, before):
    """Up to one new token in 30, wherever it stands."""
    source = random.Random(seed)
    changes = min(changes, period // 30)
    passage = [source.randint(0, 9_999) for _ in range(period)]
    text = [source.randint(20_000, 30_000) for _ in range(before)]
    for _ in range(3_600 // period):
        copy = list(passage)
        for _ in range(changes):
            copy[source.randrange(period)] = source.randint(40_000, 50_000)
        text += copy

    count, _ = noticed_after(text) or (10**9, None)

    assert count - before <= max(1_500, 8 * period)


def table(rows):
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def collatz(start):
    numbers = [start]
    while len(numbers) < 12:
        numbers.append(numbers[-1] // 2 if numbers[-1] % 2 == 0 else 3 * numbers[-1] + 1)
    return " -> ".join(map(str, numbers))


SOURCE = random.Random(11)
REFRAIN = "Oh the wind and the rain, oh the wind and the rain,\nthe road goes on and never comes again,\n\n"
LEGITIMATE = {
    "multiplication table": table([a * b for b in range(1, 13)] for a in range(1, 41)),
    "products": "\n".join(f"{a} × {b} = {a * b}" for a in range(1, 21) for b in range(1, 21)),
    "truth table": table([*row, sum(row) % 2] for row in itertools.product([0, 1], repeat=8)),
    "zeros": "[\n" + ",\n".join("  [" + ", ".join("0" * 16) + "]" for _ in range(16)) + "\n]",
    "bits": " ".join(str(SOURCE.randint(0, 1)) for _ in range(3_000)),
    "digits": "".join(str(SOURCE.randint(0, 9)) for _ in range(5_000)),
    "primes": ", ".join(str(n) for n in range(2, 4_000) if all(n % d for d in range(2, int(n**0.5) + 1))),
    "collatz": "\n".join(f"Start with {n}: {collatz(n)}" for n in range(3, 90)),
    "grid": "\n".join(" ".join(SOURCE.choice(".#") for _ in range(20)) for _ in range(60)),
    "json": json.dumps(
        [{"id": n, "name": SOURCE.choice(WORDS), "active": SOURCE.random() < 0.5, "n": n * n} for n in range(300)],
        indent=2,
    ),
    "enumeration": "\n".join(
        f"Let me check n={n}: {n}^2 + {n} + 41 = {n * n + n + 41}, so n={n} is {'' if n % 3 else 'not '}a solution."
        for n in range(1, 41)
    ),
    "cases": "\n\n".join(
        f"Case n={n}: substituting into the equation gives {n**3 - 2 * n} on the left hand side and {n * n + 5 * n} on the "
        "right hand side, which are not equal. So this value does not satisfy the equation and we move on."
        for n in range(1, 41)
    ),
    "long division": "\n".join(
        f"{a} ÷ 7 = {a // 7} remainder {a % 7}. Bring down the next digit. Now we have {a % 7 * 10 + 3}."
        for a in range(10, 140)
    ),
    "song": "".join(prose(n, 40) + "\n" + REFRAIN for n in range(20)),
    "chinese": "，".join(
        "".join(SOURCE.choice("山水花月春眠不觉晓处闻啼鸟夜来风雨声") for _ in range(7)) for _ in range(300)
    ),
    "tests": "\n".join(f"def test_case_{n}():\n    assert solve({n}) == {n * n}\n" for n in range(150)),
    "html": "\n".join(
        f'<tr><td class="cell">{SOURCE.randint(1, 99)}</td><td class="cell">{SOURCE.choice(WORDS)}</td></tr>'
        for n in range(150)
    ),
}


@pytest.mark.parametrize("name", LEGITIMATE)
def test_text_that_repeats_for_a_reason_is_let_pass(name):
    """Even by a model that is sure of every token of it."""
    assert noticed_after(tokens(LEGITIMATE[name])) is None


def test_the_standard_library_does_not_go_in_circles():
    files = sorted(Path(sys.modules["os"].__file__).parent.glob("*.py"))[::8]
    texts = [file.read_text(encoding="utf-8", errors="replace")[:20_000] for file in files]

    assert len(texts) > 20
    assert [file.name for file, text in zip(files, texts, strict=True) if noticed_after(tokens(text))] == []


def test_a_model_that_is_not_sure_does_not_go_in_circles():
    """It quotes: the words are the same, and others would have been as likely."""
    passage = tokens(prose(2, 60))

    assert noticed_after(passage * 60, entropy=UNSURE) is None


def test_entropy_is_asked_for_only_under_suspicion():
    """Computing it costs a pass over the vocabulary."""
    detector = LoopDetector()
    for token_id in tokens(prose(6, 3_000)):
        detector.feed(token_id)
        assert not detector.wants_entropy


def test_without_entropy_a_loop_is_noticed_later():
    passage = tokens(prose(2, 60))

    sure, _ = noticed_after(passage * 60)
    blind, _ = noticed_after(passage * 60, entropy=None)

    assert sure < blind < sure + 400


def test_a_loop_that_ends_is_forgotten():
    detector = LoopDetector()
    for token_id in tokens(prose(2, 60)) * 6:
        detector.feed(token_id, UNSURE)
    assert detector.wants_entropy
    for token_id in tokens(prose(7, 200)):
        assert detector.feed(token_id, SURE) is None

    assert not detector.wants_entropy


def test_an_answer_may_repeat_more_than_a_thought():
    passage = tokens(prose(2, 60))

    thought, _ = noticed_after(passage * 60)
    answer, loop = noticed_after(passage * 60, patience=ANSWER_PATIENCE)

    assert answer > 2 * thought
    assert loop.repeated_tokens >= 2 * thought


def test_memory_does_not_grow_with_the_thought():
    detector = LoopDetector()
    for token_id in range(40_000):
        detector.feed(token_id)
    held = [value for part in (detector._copies, detector._novelty) for value in vars(part).values()]

    assert max(len(value) for value in held if hasattr(value, "__len__")) <= 8_192
