"""An answer held to its format: which tokens may come next."""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import mlx.core as mx
import numpy as np

from r1mac.engine.grammar import bad_format, grammar_text, matcher_error
from r1mac.engine.request import AnswerFormat
from r1mac.engine.think import THINK_START
from r1mac.engine.tokenizer import Tokenizer
from r1mac.errors import BadCheckpoint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# R1 writes «</think>\n\n» before its answer; what comes after these is held to the format.
_LINE_BREAKS = ("\n", "\n\n")
_MOST_LEADING_TOKENS = 2


class Constraint:
    """Says which tokens an answer may go on with, so that its text has the format that was asked for.

    An answer is given as its tokens each time, and is followed from where it was left: after a restart, or when tokens
    were put in or taken back, nothing need be said. Line breaks before the answer belong to the thought.
    """

    def __init__(self, answer_format: AnswerFormat, tokenizer: Tokenizer) -> None:
        """Prepare for one reply.

        Raises:
            BadAnswerFormat: nothing can be held to this format.
            BadCheckpoint: the tokenizer is of a kind whose tokens have no certain bytes.
        """
        self._format = answer_format
        self._matcher = _matcher(answer_format, tokenizer)
        encoded = [tokenizer.encode(text) for text in _LINE_BREAKS]
        self._leading_ids = sorted({ids[0] for ids in encoded if len(ids) == 1})
        self._think_id = tokenizer.token_id(THINK_START)
        self._followed: list[int] = []
        self._leading = 0

    def finished(self, answer_ids: Sequence[int]) -> bool:
        """Whether the answer is complete and nothing could be added to it."""
        self._follow(answer_ids)
        return self._matcher.is_stopped()

    def mask(self, logits: mx.array, answer_ids: Sequence[int], *, may_think: bool = False) -> mx.array:
        """Return *logits* ``[1, vocabulary]`` with minus infinity where a token would break the format.

        An end token is allowed where the answer may end, and nothing else where it must.

        Args:
            logits: of the token after *answer_ids*; may have more columns than the tokenizer has tokens.
            answer_ids: the tokens of the answer so far, without the tag that closed the thought.
            may_think: whether the model may still open a thought of its own instead of answering.

        Raises:
            BadAnswerFormat: the grammar grew too complex under way.
        """
        self._follow(answer_ids)
        bits = self._matcher.compute_bitmask()
        if error := matcher_error(self._matcher, self._format):
            raise error
        if not any(bits):
            raise bad_format(self._format, "no text whatever satisfies it")
        # One bit for each token, the least significant first.
        allowed = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")
        whole = np.zeros(logits.shape[-1], dtype=np.bool_)
        count = min(len(allowed), len(whole))
        whole[:count] = allowed[:count]
        if len(self._followed) == self._leading:
            if self._leading < _MOST_LEADING_TOKENS:
                whole[self._leading_ids] = True
            if may_think and self._think_id is not None:
                whole[self._think_id] = True
        return mx.where(mx.array(whole), logits, -mx.inf)

    def _follow(self, answer_ids: Sequence[int]) -> None:
        known = len(self._followed)
        if list(answer_ids[:known]) != self._followed:
            self._matcher.reset()
            self._followed, self._leading, known = [], 0, 0
        for token_id in answer_ids[known:]:
            leads = len(self._followed) == self._leading < _MOST_LEADING_TOKENS and token_id in self._leading_ids
            if not leads and not self._matcher.consume_token(token_id):
                raise bad_format(self._format, self._matcher.get_error())
            self._leading += leads
            self._followed.append(token_id)


_TOKENIZERS: WeakKeyDictionary[Tokenizer, "LLTokenizer"] = WeakKeyDictionary()


def _matcher(answer_format: AnswerFormat, tokenizer: Tokenizer) -> "LLMatcher":
    from llguidance import LLMatcher

    # Building a tree of all tokens takes a second for 129,280 of them; it serves every reply.
    if tokenizer not in _TOKENIZERS:
        _TOKENIZERS[tokenizer] = _library_tokenizer(tokenizer)
    matcher = LLMatcher(_TOKENIZERS[tokenizer], grammar_text(answer_format), log_level=0)
    if error := matcher_error(matcher, answer_format):
        raise error
    return matcher


def _library_tokenizer(tokenizer: Tokenizer) -> "LLTokenizer":
    from llguidance import LLTokenizer

    end_ids = sorted(token_id for token_id in tokenizer.end_ids if token_id < tokenizer.vocab_size)
    try:
        return LLTokenizer(tokenizer.as_json(), eos_token=end_ids or None)
    except ValueError as error:
        raise BadCheckpoint(
            f"this model's tokenizer cannot be held to a format: {error}", hint="ask without a format for the answer"
        ) from error
