"""A mixture of experts, one expert at a time: each is read once, for all tokens that it takes.

The choice is that of transformers' ``DeepseekV3TopkRouter``: the best of the best groups by score and correction
bias, weighed by the scores alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Self

import mlx.core as mx
import numpy as np

from r1mac.convert.blocks import Array, as_numpy
from r1mac.convert.device import on_cpu
from r1mac.convert.grouped_rows import Tokens
from r1mac.convert.products import Products, gated, gated_rows, quietly
from r1mac.convert.side_by_side import Work

# How many of a group's experts speak for it.
_SPEAKERS = 2
# What they give waits to be added in their order, so that it is the same however threads take turns.
_TASKS_AT_ONCE = 8
# Fewer would cost more calls, and more would let threads wait for the last one.
_EXPERTS_A_TASK = 8

Names = tuple[str, str, str]


class Chosen(NamedTuple):
    """An expert with the tokens that it takes.

    Attributes:
        number: the expert's.
        x: of all tokens, ``[tokens, hidden]``.
        tokens: which of them it takes.
        weights: of what it gives for each of these, ``[taken, 1]``.
    """

    number: int
    x: Array
    tokens: Array
    weights: Array

    @property
    def rows(self) -> Array:
        """Its tokens of *x*."""
        rows: Array = self.x[self.tokens]
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Which experts take which tokens.

    Attributes:
        experts: ``[tokens, active]``.
        weights: of what they give, likewise.
    """

    experts: Array
    weights: Array

    @classmethod
    def of(cls, config: Mapping[str, Any], *, logits: mx.array, bias: mx.array) -> Self:
        """Return the choice by router *logits* ``[tokens, experts]`` and correction *bias* ``[experts]``."""
        active, groups = int(config["num_experts_per_tok"]), int(config.get("n_group") or 1)
        with quietly():
            scores = 1 / (1 + np.exp(-as_numpy(logits).astype(np.float64)))
        ranked = (scores + as_numpy(bias)).reshape(len(scores), groups, -1)
        lost = groups - int(config.get("topk_group") or groups)
        if lost > 0:
            of_groups = np.sort(ranked, axis=-1)[..., -_SPEAKERS:].sum(axis=-1)
            worst = np.argsort(of_groups, axis=-1, kind="stable")[:, :lost]
            np.put_along_axis(ranked, worst[..., None], -np.inf, axis=1)
        order = np.argsort(-ranked.reshape(scores.shape), axis=-1, kind="stable")
        experts = order[:, :active]
        weights = np.take_along_axis(scores, experts, axis=-1)
        if active > 1 and config.get("norm_topk_prob", True):
            weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
        return cls(experts=experts, weights=weights * float(config.get("routed_scaling_factor", 1.0)))

    def experts_with(self, x: Array) -> list[Chosen]:
        """Return the experts that take tokens of *x* ``[tokens, hidden]``, in their order."""
        flat = self.experts.reshape(-1)
        places = np.argsort(flat, kind="stable")
        numbers, firsts = np.unique(flat[places], return_index=True)
        tokens, weights = places // self.experts.shape[1], self.weights.reshape(-1, 1)[places].astype(np.float32)
        spans = zip(numbers.tolist(), firsts.tolist(), [*firsts[1:].tolist(), len(flat)], strict=True)
        return [Chosen(number, x, tokens[start:stop], weights[start:stop]) for number, start, stop in spans]


def mix_experts(x: mx.array, routing: Routing, products: Products, names_of: Callable[[int], Names]) -> Work[mx.array]:
    """Return the weighted sum of what its experts give for each token, ``[tokens, hidden]``.

    Args:
        x: ``[tokens, hidden]``.
        routing: of the tokens.
        products: with the matrices of the source.
        names_of: the names of the gate's, the upward and the downward matrix of an expert, by its number.
    """
    total = np.zeros(x.shape, np.float32)
    groups = _groups(routing.experts_with(as_numpy(x)))
    given_by = _given_on_cpu if on_cpu() else _given_on_gpu
    at_once = _TASKS_AT_ONCE if on_cpu() else 1
    for start in range(0, len(groups), at_once):
        some = groups[start : start + at_once]
        names = [[names_of(one.number) for one in group] for group in some]
        tasks = [partial(given_by, products, group, each) for group, each in zip(some, names, strict=True)]
        results = yield from products.results(tasks, [name for each in names for three in each for name in three])
        for one, made in zip(chain(*some), chain(*results), strict=True):
            total[one.tokens] += made * one.weights
    return mx.array(total)


def _groups(experts: Sequence[Chosen]) -> list[list[Chosen]]:
    """Return *experts*, in order, as a few of a task each, where they follow one another in a stack."""
    groups: list[list[Chosen]] = []
    for one in experts:
        if groups and len(groups[-1]) < _EXPERTS_A_TASK and groups[-1][-1].number == one.number - 1:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _given_on_cpu(products: Products, experts: Sequence[Chosen], names: Sequence[Names]) -> list[Array]:
    """Return what each of *experts* gives for its tokens."""
    gates, ups, downs = zip(*names, strict=True)
    xs = [Tokens(one.rows) for one in experts]
    with quietly():
        opened, upward = products.times_each(gates, xs), products.times_each(ups, xs)
        inner = [Tokens(gated_rows(gate, up)) for gate, up in zip(opened, upward, strict=True)]
        return products.times_each(downs, inner)


def _given_on_gpu(products: Products, experts: Sequence[Chosen], names: Sequence[Names]) -> list[Array]:
    made = []
    for one, (gate, up, down) in zip(experts, names, strict=True):
        x = mx.array(one.rows)
        opened = products.times_alone(gate, x)
        made.append(as_numpy(products.times_alone(down, gated(opened, products.times_alone(up, x)))))
    return made
