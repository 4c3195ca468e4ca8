"""What a text holds foretells how it goes on: code that is edited, a passage quoted, a thought repeated."""

from array import array
from collections.abc import Iterator, Sequence

from r1mac.engine.drafts.length import Acceptance
from r1mac.engine.prefix import shared_prefix

# How far back two places are compared to tell which of them agrees longer with the end of the text.
MOST_AGREEMENT = 16
# Earlier places with the same last two tokens that are compared, newest first.
_MOST_PLACES = 8
_PAIR_BITS = 32
_NOWHERE = -1
# The least agreement of each grade of evidence, and how often such a token was right in the texts of docs/lab.md.
_GRADES = ((2, 0.4), (3, 0.4), (4, 0.5), (5, 0.6), (8, 0.8), (MOST_AGREEMENT, 0.9))
_GRADE_OF = [sum(agreement >= least for least, _ in _GRADES) - 1 for agreement in range(MOST_AGREEMENT + 1)]


class LookupDrafter:
    """Drafts what the text foretells.

    It learns from every token, drafted or not, how far each length of agreement is to be trusted: text that does not
    repeat itself is found out, and found out again when it changes, without a single draft.
    """

    def __init__(self) -> None:
        self._lookup = Lookup()
        self._acceptance = Acceptance([prior for _, prior in _GRADES])

    def begin(self, token_ids: Sequence[int]) -> None:
        """Take *token_ids* for the text."""
        self._lookup.begin(token_ids)

    def prefill(self, token_ids: Sequence[int]) -> Iterator[int]:
        """Read nothing: a text that is known costs no time."""
        return iter(token_ids[:0])

    def take(self, token_ids: Sequence[int], drafted: int) -> None:  # noqa: ARG002 - a drafter may learn from drafts alone
        """Go on with further tokens of the text, and learn from them."""
        lookup = self._lookup
        for token_id in token_ids:
            if lookup.next_id is not None:
                self._acceptance.learn(_grade(lookup.agreement), lookup.next_id == token_id)
            lookup.take(token_id)

    def chances(self, most: int, *, skipped: int = 0) -> list[float]:
        """Return how likely each of the next tokens is right if those before it are, without the first *skipped*."""
        if self._lookup.next_id is None:
            return []
        agreement = self._lookup.agreement + skipped
        return [self._acceptance.chance(_grade(agreement + index)) for index in range(most)]

    def propose(self, count: int, sampler: object, position: int) -> list[int]:  # noqa: ARG002 - nothing is sampled
        """Return the next *count* tokens."""
        return self._lookup.ahead(count)

    def drafting_seconds(self, sampler: object) -> float:  # noqa: ARG002 - a drafter may sample
        """Return what drafting one token takes."""
        return 0.0


class Lookup:
    """Finds the end of a text earlier in the same text, and reads on from there.

    All places where a pair of tokens occurs are linked, newest first. Once a place is found it is followed for as long
    as it foretells right, so that the longest agreement is kept; where it fails, another is searched for. A token
    costs the same however long the text is: at most eight places are compared.

    Attributes:
        most_tokens: what is remembered; of a longer text the older half is dropped.
    """

    _place: int
    _agreement: int

    def __init__(self, *, most_tokens: int = 1 << 17) -> None:
        self.most_tokens = most_tokens
        self._forget()

    def begin(self, token_ids: Sequence[int]) -> None:
        """Take *token_ids* for the text. What it shares with the text so far is not indexed again."""
        token_ids = token_ids[-self.most_tokens :]
        shared = shared_prefix(self._text, token_ids)
        # Undoing costs as much as adding does: a text that is mostly another is begun anew.
        if shared < len(self._text) // 2:
            self._forget()
            shared = 0
        while len(self._text) > shared:
            self._drop_last()
        for token_id in token_ids[shared:]:
            self._index(token_id)
        self._find()

    def take(self, token_id: int) -> None:
        """Add a token to the text."""
        if len(self._text) >= self.most_tokens:
            self.begin(self._text[-(self.most_tokens // 2) :])
        foretold = self._place != _NOWHERE and self._text[self._place] == token_id
        self._index(token_id)
        if foretold:
            self._place += 1
            self._agreement = min(self._agreement + 1, MOST_AGREEMENT)
        else:
            self._find()

    @property
    def agreement(self) -> int:
        """How many tokens at the end of the text are those before the place that is read from; 0 without a place."""
        return self._agreement

    @property
    def next_id(self) -> int | None:
        """The token that is foretold."""
        return None if self._place == _NOWHERE else self._text[self._place]

    def ahead(self, count: int) -> list[int]:
        """Return up to *count* tokens that may follow. A text that goes in circles is read round and round."""
        if self._place == _NOWHERE:
            return []
        found = self._text[self._place : self._place + count]
        period = len(found)
        while len(found) < count:
            found.append(found[-period])
        return found

    def _forget(self) -> None:
        self._text: list[int] = []
        self._last: dict[int, int] = {}  # the newest place behind each pair
        self._older = array("l")  # for each place, the one before it behind the same pair
        self._place, self._agreement = _NOWHERE, 0

    def _pair(self) -> int:
        return self._text[-2] << _PAIR_BITS | self._text[-1]

    def _index(self, token_id: int) -> None:
        self._text.append(token_id)
        if len(self._text) < 2:  # noqa: PLR2004 - a pair
            self._older.append(_NOWHERE)
            return
        pair = self._pair()
        self._older.append(self._last.get(pair, _NOWHERE))
        self._last[pair] = len(self._text)

    def _drop_last(self) -> None:
        older = self._older.pop()
        if len(self._text) >= 2:  # noqa: PLR2004 - a pair
            if older == _NOWHERE:
                del self._last[self._pair()]
            else:
                self._last[self._pair()] = older
        self._text.pop()

    def _find(self) -> None:
        """Look for the earlier place that agrees longest with the end of the text."""
        self._place, self._agreement = _NOWHERE, 0
        place = self._older[-1] if self._older else _NOWHERE
        for _ in range(_MOST_PLACES):
            if place == _NOWHERE:
                return
            agreement = self._agreement_at(place)
            if agreement > self._agreement:
                self._place, self._agreement = place, agreement
            place = self._older[place - 1]

    def _agreement_at(self, place: int) -> int:
        text, count, most = self._text, 2, min(place, MOST_AGREEMENT)
        while count < most and text[place - count - 1] == text[-count - 1]:
            count += 1
        return count


def _grade(agreement: int) -> int:
    return _GRADE_OF[min(agreement, MOST_AGREEMENT)]
