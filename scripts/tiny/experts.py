"""DeepSeek's mixture of experts, forwards and back: each token goes to a few, chosen among the best groups."""

from dataclasses import dataclass

import numpy as np

from scripts.tiny.tape import Array, Ids, Tape, Value, sigmoid


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How experts are chosen, by the fields of config.json."""

    count: int
    active: int
    groups: int
    active_groups: int
    scale: float


def choose(scores: Array, bias: Array, choice: Choice) -> Ids:
    """Return the experts of each token, ``[tokens, active]``: *bias* helps to choose and weighs nothing."""
    ranked = scores + bias
    grouped = ranked.reshape(len(ranked), choice.groups, -1)
    best = np.partition(grouped, -2, axis=-1)[..., -2:].sum(axis=-1)
    lost = np.argsort(best, axis=1, kind="stable")[:, : choice.groups - choice.active_groups]
    np.put_along_axis(grouped, lost[..., None], -np.inf, axis=1)
    return np.argpartition(-ranked, choice.active - 1, axis=1)[:, : choice.active]


def mix(
    tape: Tape, x: Value, logits: Value, bias: Array, opening: Value, closing: Value, choice: Choice
) -> tuple[Value, Ids]:
    """Return the weighted sum of what its experts make of each token, and the experts, ``[tokens, active]``.

    Args:
        tape: where it is noted.
        x: ``[tokens, width]``.
        logits: of the router, ``[tokens, count]``.
        bias: its correction, ``[count]``.
        opening: gate and up of all experts, ``[count, 2 * inner, width]``.
        closing: down of all experts, ``[count, width, inner]``.
        choice: how many.
    """
    tokens, active, inner = x.data.shape[0], choice.active, closing.data.shape[2]
    scores = sigmoid(logits.data)
    chosen = choose(scores, bias, choice)
    kept = np.take_along_axis(scores, chosen, axis=1)
    total = kept.sum(axis=1, keepdims=True)
    order = np.argsort(chosen.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(chosen.ravel(), minlength=choice.count))
    spans = [slice(start, end) for start, end in zip((0, *ends[:-1]), ends, strict=True)]
    token = order // active
    share = (choice.scale * kept / total).ravel()[order, None]
    given = x.data[token]
    both = np.empty((len(order), 2 * inner), x.data.dtype)
    for expert, span in enumerate(spans):
        np.matmul(given[span], opening.data[expert].T, out=both[span])
    gate, up = both[:, :inner], both[:, inner:]
    opened = sigmoid(gate)
    passed = gate * opened
    inside = passed * up
    shared_inside = inside * share
    made = np.empty((len(order), x.data.shape[1]), x.data.dtype)
    for expert, span in enumerate(spans):
        np.matmul(shared_inside[span], closing.data[expert].T, out=made[span])

    def gathered(sorted_rows: Array) -> Array:
        rows = np.empty_like(sorted_rows)
        rows[order] = sorted_rows
        sums: Array = rows.reshape(tokens, active, -1).sum(axis=1)
        return sums

    def back(grad: Array) -> None:
        out = grad[token]
        to_closing, to_opening = np.zeros_like(closing.data), np.zeros_like(opening.data)
        to_inside = np.empty_like(inside)
        for expert, span in enumerate(spans):
            np.matmul(out[span], closing.data[expert], out=to_inside[span])
            np.matmul(out[span].T, shared_inside[span], out=to_closing[expert])
        to_share = np.empty((tokens, active), x.data.dtype)
        to_share.reshape(-1)[order] = np.einsum("ti,ti->t", to_inside, inside)
        to_inside *= share
        to_both = np.empty_like(both)
        np.multiply(to_inside, passed, out=to_both[:, inner:])
        to_inside *= up
        np.multiply(to_inside, opened + passed * (1 - opened), out=to_both[:, :inner])
        to_given = np.empty_like(given)
        for expert, span in enumerate(spans):
            np.matmul(to_both[span], opening.data[expert], out=to_given[span])
            np.matmul(to_both[span].T, given[span], out=to_opening[expert])
        opening.add_grad(to_opening)
        closing.add_grad(to_closing)
        x.add_grad(gathered(to_given))
        weighted = (to_share * kept).sum(axis=1, keepdims=True) / total
        to_kept = choice.scale * (to_share - weighted) / total
        to_logits = np.zeros_like(logits.data)
        np.put_along_axis(to_logits, chosen, to_kept * kept * (1 - kept), axis=1)
        logits.add_grad(to_logits)

    return tape.note(Value(gathered(made)), back), chosen
