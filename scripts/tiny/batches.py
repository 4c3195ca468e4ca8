"""Conversations as tokens, in batches of about one length."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, default_rng
from tokenizers import Tokenizer

from scripts.tiny.model import Batch
from scripts.tiny.problems import Exchange, draw_exchange
from scripts.tiny.talk import some_words
from scripts.tiny.words import ASSISTANT, BEGIN, END, THINK, THOUGHT, USER, train_tokenizer

# What a token counts that the model has not to say: a little, so that it knows questions too.
_HEARD_WEIGHT = 0.05
_SECOND_TURN_SHARE = 0.15
_NO_THOUGHT_SHARE = 0.03
_SYSTEM_SHARE = 0.05
# Batches that are sorted by length together: more would make each of one kind of sum.
_POOL_BATCHES = 8
_TOKENIZER_EXCHANGES = 6000
# Beside the number of a pool, which is small.
_TOKENIZER_SEED = 1 << 40


class Conversation(NamedTuple):
    """Tokens, and how much each counts when it is to be predicted."""

    ids: list[int]
    weights: list[float]


def prompt_text(question: str, history: Sequence[Exchange] = (), system: str = "") -> str:
    """Return what R1's template makes of a question, of the exchanges before it and of a system prompt."""
    before = "".join(f"{USER}{turn.question}{ASSISTANT}\n\n{turn.answer}{END}" for turn in history)
    return f"{BEGIN}{system}{before}{USER}{question}{ASSISTANT}{THINK}\n"


def reply_text(exchange: Exchange) -> str:
    """Return what the model is to say, its end included; without a thought the thought is closed at once."""
    thought = f"{exchange.thought}\n" if exchange.thought else "\n"
    return f"{thought}{THOUGHT}\n\n{exchange.answer}{END}"


def draw_conversation(tokenizer: Tokenizer, rng: Generator) -> Conversation:
    """Return a conversation to learn from."""
    history = [draw_exchange(rng)] if rng.random() < _SECOND_TURN_SHARE else []
    system = some_words(rng) if rng.random() < _SYSTEM_SHARE else ""
    exchange = draw_exchange(rng)
    prompt, reply = prompt_text(exchange.question, history, system), reply_text(exchange)
    if rng.random() < _NO_THOUGHT_SHARE:
        prompt, reply = f"{prompt}\n{THOUGHT}\n\n", f"{exchange.answer}{END}"
    heard, said = (tokenizer.encode(text, add_special_tokens=False).ids for text in (prompt, reply))
    weights = [0.0] + [_HEARD_WEIGHT] * (len(heard) - 1) + [1.0] * len(said)
    return Conversation([*heard, *said], weights)


def batches(tokenizer: Tokenizer, *, seed: int, batch_tokens: int, start: int) -> Iterator[Batch]:
    """Yield batches for ever, the same ones for the same *seed*, from number *start* on."""
    number = start
    while True:
        pool, first = divmod(number, _POOL_BATCHES)
        made = _pool(tokenizer, default_rng([seed, pool]), batch_tokens)
        for batch in made[first:]:
            yield batch
            number += 1


def _pool(tokenizer: Tokenizer, rng: Generator, batch_tokens: int) -> list[Batch]:
    """Return _POOL_BATCHES batches in any order, each of conversations of about one length."""
    drawn: list[Conversation] = []
    while sum(len(conversation.ids) for conversation in drawn) < _POOL_BATCHES * batch_tokens:
        drawn.append(draw_conversation(tokenizer, rng))
    drawn.sort(key=lambda conversation: len(conversation.ids))
    ends = np.cumsum([len(conversation.ids) for conversation in drawn])
    cuts = [int(np.searchsorted(ends, ends[-1] * part / _POOL_BATCHES)) for part in range(1, _POOL_BATCHES)]
    groups = [drawn[start:end] for start, end in zip([0, *cuts], [*cuts, len(drawn)], strict=True)]
    return [padded(groups[index]) for index in rng.permutation(len(groups))]


def padded(conversations: Sequence[Conversation]) -> Batch:
    """Return conversations as one batch."""
    lengths = np.array([len(conversation.ids) for conversation in conversations])
    ids = np.zeros((len(lengths), lengths.max()), np.int64)
    weights = np.zeros(ids.shape, np.float32)
    for row, conversation in enumerate(conversations):
        ids[row, : lengths[row]] = conversation.ids
        weights[row, : lengths[row]] = conversation.weights
    return Batch(ids, weights, lengths)


def draw_tokenizer(seed: int) -> Tokenizer:
    """Return the tokenizer for conversations like those that are drawn."""
    rng = default_rng([seed, _TOKENIZER_SEED])
    exchanges = (draw_exchange(rng) for _ in range(_TOKENIZER_EXCHANGES))
    return train_tokenizer(prompt_text(exchange.question) + reply_text(exchange) for exchange in exchanges)
