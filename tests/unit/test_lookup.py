"""What a text foretells of itself: where it is read on, how far that is trusted, and what it costs."""

import itertools
import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from r1mac.engine.drafts.lookup import MOST_AGREEMENT, Lookup, LookupDrafter

texts = st.lists(st.integers(0, 3), max_size=60)


def _after(text: list[int], **options: int) -> Lookup:
    lookup = Lookup(**options)
    lookup.begin(text)
    return lookup


def test_a_copied_passage_is_read_on() -> None:
    """Two tokens that were there before are enough to foretell what came behind them."""
    lookup = _after([1, 2, 3, 4, 5, 6, 9, 2, 3])

    assert lookup.next_id == 4
    assert lookup.agreement == 2
    assert lookup.ahead(3) == [4, 5, 6]


def test_the_longest_agreement_wins() -> None:
    """Of several places the one that agrees for longest is read, and of equal ones the newest."""
    assert _after([7, 1, 2, 10, 8, 1, 2, 20, 7, 1, 2]).next_id == 10
    assert _after([7, 1, 2, 10, 8, 1, 2, 20, 9, 1, 2]).next_id == 20


def test_a_place_that_foretells_right_is_kept() -> None:
    """A passage is read on also past words that stood elsewhere more lately."""
    passage = [1, 2, 3, 4, 5, 6, 7, 8]
    lookup = _after([*passage, 4, 5, 99, 1, 2])

    for token_id in passage[2:]:
        assert lookup.next_id == token_id
        lookup.take(token_id)
    assert lookup.agreement == len(passage)


def test_circles_are_read_round_and_round() -> None:
    """A text that repeats itself foretells more tokens than are left of it."""
    assert _after([9, 1, 2, 3, 1, 2, 3, 1, 2]).ahead(7) == [3, 1, 2, 3, 1, 2, 3]


def test_new_text_foretells_nothing() -> None:
    """Without an earlier place there is no draft."""
    for text in ([], [1], [1, 2], [1, 2, 3, 4], [1, 2, 3, 1]):
        lookup = _after(text)
        assert (lookup.next_id, lookup.agreement, lookup.ahead(4)) == (None, 0, [])


@given(text=texts, further=texts)
@settings(deadline=None)
def test_what_is_foretold_was_there(text: list[int], further: list[int]) -> None:
    """The foretold token stands behind an earlier place that agrees with the end of the text as far as is said."""
    lookup = _after(text)
    for token_id in further:
        lookup.take(token_id)
    whole, count = text + further, lookup.agreement
    pairs = list(itertools.pairwise(whole))

    if lookup.next_id is None:
        assert len(whole) < 2 or pairs[-1] not in pairs[:-1]
        return
    assert 2 <= count <= MOST_AGREEMENT
    places = [at for at in range(count, len(whole)) if whole[at - count : at] == whole[-count:]]
    assert lookup.next_id in {whole[at] for at in places}


@given(shared=texts, old=texts, new=texts)
@settings(deadline=None)
def test_another_text_is_taken_as_if_it_were_the_first(shared: list[int], old: list[int], new: list[int]) -> None:
    """After a hint was put in, or a reply was cut, drafts are those of a lookup that never knew the old end."""
    lookup = _after(shared)
    for token_id in old:
        lookup.take(token_id)

    lookup.begin(shared + new)

    fresh = _after(shared + new)
    for token_id in [*new, 1, 2, 3, 1, 2]:
        assert (lookup.agreement, lookup.ahead(5)) == (fresh.agreement, fresh.ahead(5))
        lookup.take(token_id)
        fresh.take(token_id)


def test_only_the_latest_text_is_remembered() -> None:
    """Memory is bounded: what lies further back foretells nothing, what came since does."""
    lookup = _after([], most_tokens=100)
    for token_id in [*range(1000, 1010), *range(200), 1000, 1001]:
        lookup.take(token_id)

    assert lookup.next_id is None
    for token_id in (190, 191):
        lookup.take(token_id)
    assert lookup.ahead(2) == [192, 193]
    assert _after([*range(1000, 1010), *range(100), 1000, 1001], most_tokens=100).next_id is None


def test_a_token_costs_the_same_in_a_long_text() -> None:
    """A hundred thousand tokens take about a hundred times what a thousand take, also if all look alike."""

    def seconds(count: int) -> float:
        tokens = random.Random(1).choices(range(3), k=count)
        lookup, begun = Lookup(), time.process_time()
        for token_id in tokens:
            lookup.take(token_id)
        return (time.process_time() - begun) / count

    short = min(seconds(1000) for _ in range(3))
    assert seconds(100_000) < 8 * short


def test_trust_follows_what_came_true() -> None:
    """A drafter trusts repeating text more and more, and text that only seems to repeat itself less and less."""
    right, wrong = LookupDrafter(), LookupDrafter()
    right.begin([1, 2, 3, 4, 5] * 4)
    wrong.begin([1, 2])
    before = right.chances(1)[0]
    pairs = random.Random(2)

    right.take([1, 2, 3, 4, 5] * 10, 0)
    for _ in range(100):
        wrong.take([1, 2, pairs.randrange(3, 10_000)], 0)
    wrong.take([1, 2], 0)

    assert right.chances(1)[0] > max(0.95, before)
    assert wrong.chances(1)[0] < 0.1
    assert wrong.propose(1, None, 0) != []


def test_trust_returns_when_the_text_changes() -> None:
    """After a long stretch of misses some dozens of right tokens are enough to be trusted again."""
    drafter, pairs = LookupDrafter(), random.Random(2)
    drafter.begin([])
    for _ in range(200):
        drafter.take([1, 2, pairs.randrange(3, 10_000)], 0)
    drafter.take([50, 51, 52, 53, 54, 55, 56, 57, 58, 59] * 4, 0)

    assert drafter.chances(8)[0] > 0.8


def test_each_further_token_stands_on_more_evidence() -> None:
    """Tokens further on, if those before come true, are as likely as after so long an agreement; skipped ones count."""
    drafter = LookupDrafter()
    drafter.begin([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2])

    chances = drafter.chances(6)

    assert chances == sorted(chances)
    assert drafter.chances(4, skipped=2) == chances[2:]
    assert len(chances) == 6
