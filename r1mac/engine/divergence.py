"""How far a model's next-token distributions are from a reference's, on the same text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import mlx.core as mx
from mlx import nn

# Logits of a large vocabulary take half a megabyte a token.
_TOKENS_AT_ONCE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Means over the tokens of a text.

    Attributes:
        tokens: how many distributions were compared.
        kl_nats: Kullback-Leibler divergence of the model's distribution from the reference's.
        same_top: share of tokens whose most likely successor is the same.
        perplexity: of the text under the model.
        reference_perplexity: under the reference.
    """

    tokens: int
    kl_nats: float
    same_top: float
    perplexity: float
    reference_perplexity: float


def compare(model: Any, reference: Any, sequences: Sequence[Sequence[int]]) -> Iterator[Divergence]:
    """Yield the divergence of *model* from *reference* over the sequences so far, after each of them.

    Args:
        model: a loaded model, as mlx-lm builds them.
        reference: another with the same vocabulary.
        sequences: token ids, each read without what came before.
    """
    kl = same = loss = reference_loss = 0.0
    tokens = predicted = 0
    for sequence in sequences:
        ids = mx.array([list(sequence)])
        states, wanted = model.model(ids)[0], reference.model(ids)[0]
        mx.eval(states, wanted)
        for start in range(0, len(sequence), _TOKENS_AT_ONCE):
            stop = min(start + _TOKENS_AT_ONCE, len(sequence))
            mine, theirs = _log_shares(model, states[start:stop]), _log_shares(reference, wanted[start:stop])
            following = ids[0, start + 1 : stop + 1, None]
            sums = (
                mx.sum(mx.exp(theirs) * (theirs - mine)),
                mx.sum(mx.argmax(mine, axis=-1) == mx.argmax(theirs, axis=-1)),
                -mx.sum(mx.take_along_axis(mine[: following.shape[0]], following, axis=-1)),
                -mx.sum(mx.take_along_axis(theirs[: following.shape[0]], following, axis=-1)),
            )
            mx.eval(*sums)
            more = [float(value.item()) for value in sums]  # type: ignore[arg-type]
            kl, same, loss, reference_loss = kl + more[0], same + more[1], loss + more[2], reference_loss + more[3]
        tokens, predicted = tokens + len(sequence), predicted + len(sequence) - 1
        yield Divergence(
            tokens=tokens,
            kl_nats=kl / tokens,
            same_top=same / tokens,
            perplexity=exp(min(loss / max(predicted, 1), 700.0)),
            reference_perplexity=exp(min(reference_loss / max(predicted, 1), 700.0)),
        )


def _log_shares(model: nn.Module, states: mx.array) -> mx.array:
    """Return the logarithm of each successor's share, float32 ``[tokens, vocabulary]``."""
    head = model.get("lm_head", model.model.embed_tokens.as_linear)
    logits: mx.array = head(states).astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
