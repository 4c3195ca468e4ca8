"""A thought that goes in circles, noticed while it is written.

R1's distilled siblings and low-bit conversions fall into loops: a sentence or a paragraph comes again and again, word
for word or nearly so, until the context is full. Legitimate text repeats too: tables, code, JSON, «n = 1 … n = 40».
What tells them apart is that a loop says nothing new, and that the model is sure of every word of it.

So evidence is collected in two stages, each a cumulative sum (CUSUM): a token that repeats adds one, a token that does
not takes off many, and the sum never falls below zero. A text that is new in more than one token of so many can never
collect any, however long it is.

*Suspicion* comes from the text alone, in two ways.

* ``_Copies``: the text follows an earlier passage of its own, at a distance that may change. Whatever differs from that
  passage is new: a counter in a loop of 40 tokens is one in 40, in a table one in 4.
* ``_Novelty``: runs of 16 tokens that were never written before. A paragraph in changing wordings has none once every
  wording has come, whereas each new number in a list makes 16 of them.

*Certainty* comes from the model: after the suspicion only tokens that repeat and whose distribution has an entropy
below 0.3 nats count (about 95 % on one token). In R1's ordinary thoughts most tokens are that sure and a fifth are not
(«Beyond the 80/20 rule», 2025, on Qwen3); in a loop practically all are. Where nobody gives the entropy, four times as
many tokens are asked for instead.

What this cannot tell from an enumeration is one that never ends, where a short phrase brings a new number each time
(«x = 17: no. x = 18: no.»): that is left to the budget.

Each token costs two look-ups in a table of the last 8,192 tokens: time and memory do not grow with the thought.
"""

from collections import deque
from dataclasses import dataclass

# An answer may hold tables, data and code that a thought does not.
ANSWER_PATIENCE = 3.0
_WINDOW_TOKENS = 8_192
# A passage is found again by so many tokens in a row: fewer meet by chance, more lose the passage at each change.
_FIND_TOKENS = 6
_NOVEL_TOKENS = 16
# Tokens of evidence before there is a suspicion, and what a new token takes off. 256 repeated tokens are the copies of
# half a page; 14 lets pass what is new in one token of 15. Where whole wordings come again in another order more is
# asked, since lists of few kinds of items have that too.
_COPIED_EVIDENCE = 256
_COPIED_LOSS = 14
_FAMILIAR_EVIDENCE = 768
_FAMILIAR_LOSS = 8
_LEAST_COPIES = 2
_CERTAIN_EVIDENCE = 96
_CERTAIN_NATS = 0.3
_BLIND_SHARE = 4
# Runs of fewer different tokens come again in every table of zeros and ones; a text whose last 64 tokens are that poor
# (a matrix of zeros, a ruler) needs three times the evidence.
_DISTINCT_TOKENS = 6
_LATELY_TOKENS = 64
_FEW_TOKENS = 8
_FEW_FACTOR = 3
# A passage is followed through so many new tokens in a row.
_LOST_AFTER = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """A text that goes in circles.

    Attributes:
        period_tokens: after how many tokens it comes again; 0 where that is not regular.
        repeated_tokens: how much of it was written more than once.
        text: what to tell the person, without what follows from it.
    """

    period_tokens: int
    repeated_tokens: int
    text: str


class LoopDetector:
    """Watches the tokens of one thought, or of one answer; a new one is made for each.

    Attributes:
        wants_entropy: whether there is a suspicion, so that the entropy of the tokens to come is asked for.
    """

    def __init__(self, *, subject: str = "the thought", patience: float = 1.0) -> None:
        """Begin.

        Args:
            subject: what the sentence for the person begins with.
            patience: how many times the usual evidence is asked for: 1 in a thought, ANSWER_PATIENCE in an answer.
        """
        self._subject = subject
        self._patience = patience
        self._lately: deque[int] = deque(maxlen=_LATELY_TOKENS)
        self._copies, self._novelty = _Copies(), _Novelty()
        self._copied = self._familiar = self._certain = 0.0
        self._repeated_tokens = 0
        self._suspects = False

    @property
    def wants_entropy(self) -> bool:
        """Whether to give the entropy of the next tokens' distributions."""
        return self._suspects

    def feed(self, token_id: int, entropy_nats: float | None = None) -> Loop | None:
        """Take the next token and return the loop, if it is certain now.

        Args:
            token_id: the token that was written.
            entropy_nats: of the distribution that it was chosen from, at temperature 1; looked at only while
                ``wants_entropy``.
        """
        self._lately.append(token_id)
        copied, familiar = self._copies.feed(token_id), self._novelty.feed(token_id)
        self._copied = max(0.0, self._copied + (1 if copied else -_COPIED_LOSS))
        self._familiar = max(0.0, self._familiar + (1 if familiar else -_FAMILIAR_LOSS))
        self._repeated_tokens = self._repeated_tokens + 1 if self._copied or self._familiar else 0
        suspected, self._suspects = self._suspects, self._has_evidence()
        if not (suspected and self._suspects):
            self._certain = 0.0
            return None
        self._certain = max(0.0, self._certain + self._certainty(copied or familiar, entropy_nats))
        return self._loop() if self._certain >= self._patience * _CERTAIN_EVIDENCE else None

    def _has_evidence(self) -> bool:
        """Tell whether the text alone makes a loop likely. A suspicion ends where half of its evidence is gone."""
        if max(self._copied, self._familiar) < self._patience * _COPIED_EVIDENCE / 2:
            return False
        copied, familiar = self._patience * _COPIED_EVIDENCE, self._patience * _FAMILIAR_EVIDENCE
        if len(set(self._lately)) <= _FEW_TOKENS:
            copied *= _FEW_FACTOR
        copied = max(copied, _LEAST_COPIES * self._copies.distance)
        # No more is kept than is needed twice over: a loop that ends by itself is forgotten soon.
        self._copied, self._familiar = min(self._copied, 2 * copied), min(self._familiar, 2 * familiar)
        share = 0.5 if self._suspects else 1.0
        return self._copied >= share * copied or self._familiar >= share * familiar

    @staticmethod
    def _certainty(repeats: bool, entropy_nats: float | None) -> float:
        """Return what one token of a suspected loop proves."""
        if not repeats:
            return -_FAMILIAR_LOSS
        if entropy_nats is None:
            return 1 / _BLIND_SHARE
        return 1.0 if entropy_nats < _CERTAIN_NATS else -1.0

    def _loop(self) -> Loop:
        # Wordings that come again in any order have no period.
        period = self._copies.distance if self._copied >= self._patience * _COPIED_EVIDENCE else 0
        text = f"{self._subject} went in circles: its last {self._repeated_tokens:,} tokens say what was said before"
        if period:
            text += f", every {period:,} tokens" if period > 1 else ", one token again and again"
        return Loop(period_tokens=period, repeated_tokens=self._repeated_tokens, text=text)


class _Copies:
    """Follows the passage that the text repeats.

    Attributes:
        distance: how many tokens back it lies; 0 while there is none.
    """

    def __init__(self) -> None:
        self.distance = 0
        self._tokens: list[int] = [0] * _WINDOW_TOKENS
        self._count = 0
        self._missed = 0
        self._found: dict[tuple[int, ...], int] = {}
        self._keys: deque[tuple[int, ...]] = deque()
        self._key: tuple[int, ...] = ()

    def feed(self, token_id: int) -> bool:
        """Take a token and tell whether the passage has it at this place."""
        place = self._count
        copied = self._repeats(place, token_id)
        self._tokens[place % _WINDOW_TOKENS] = token_id
        self._count += 1
        self._key = (*self._key[-(_FIND_TOKENS - 1) :], token_id)
        earlier = self._remember(place)
        if copied:
            self._missed = max(0, self._missed - 1)
            return True
        self._missed += 1
        if earlier is not None:
            # The nearest passage that ends alike; it is followed from the next token on.
            self.distance, self._missed = place - earlier, 0
        elif self._missed > _LOST_AFTER:
            self.distance = 0
        return False

    def _repeats(self, place: int, token_id: int) -> bool:
        """Tell whether the passage or the one before it has *token_id*: what is new in one copy is not in the next."""
        places = (place - self.distance, place - 2 * self.distance)
        return self.distance > 0 and any(
            0 <= earlier > place - _WINDOW_TOKENS and self._tokens[earlier % _WINDOW_TOKENS] == token_id
            for earlier in places
        )

    def _remember(self, place: int) -> int | None:
        """Note where the last tokens end, and return where they ended before."""
        if len(self._key) < _FIND_TOKENS:
            return None
        earlier = self._found.get(self._key)
        self._found[self._key] = place
        self._keys.append(self._key)
        if len(self._keys) > _WINDOW_TOKENS - _FIND_TOKENS:
            oldest = self._keys.popleft()
            if self._found.get(oldest) == place - len(self._keys):
                del self._found[oldest]
        return earlier


class _Novelty:
    """Knows the runs of tokens that were written before."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, ...], int] = {}
        self._keys: deque[tuple[int, ...]] = deque()
        self._key: tuple[int, ...] = ()

    def feed(self, token_id: int) -> bool:
        """Take a token and tell whether the run that ends with it is known, and varied enough to mean something."""
        self._key = (*self._key[-(_NOVEL_TOKENS - 1) :], token_id)
        if len(self._key) < _NOVEL_TOKENS:
            return False
        seen = self._counts.get(self._key, 0)
        self._counts[self._key] = seen + 1
        self._keys.append(self._key)
        if len(self._keys) > _WINDOW_TOKENS:
            oldest = self._keys.popleft()
            if self._counts[oldest] == 1:
                del self._counts[oldest]
            else:
                self._counts[oldest] -= 1
        return seen > 0 and len(set(self._key)) >= _DISTINCT_TOKENS
