"""A mixture of experts, one expert at a time: each is read once, for all tokens that it takes.

The choice is that of transformers' ``DeepseekV3TopkRouter``: the best of the best groups by score and correction
bias, weighed by the scores alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import mlx.core as mx
import numpy as np

from r1mac.convert.blocks import Array, as_numpy
from r1mac.convert.device import on_cpu
from r1mac.convert.products import Products, quietly

# How many of a group's experts speak for it.
_SPEAKERS = 2
# What they give waits to be added in their order, so that it is the same however threads take turns.
_EXPERTS_AT_ONCE = 16


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


def mix_experts(
    x: mx.array, routing: Routing, products: Products, names_of: Callable[[int], tuple[str, str, str]]
) -> mx.array:
    """Return the weighted sum of what its experts give for each token, ``[tokens, hidden]``.

    Args:
        x: ``[tokens, hidden]``.
        routing: of the tokens.
        products: with the matrices of the source.
        names_of: the names of the gate's, the upward and the downward matrix of an expert, by its number.
    """
    given, total = as_numpy(x), np.zeros(x.shape, np.float32)

    def weighted(expert: int) -> tuple[Array, Array]:
        tokens, places = np.nonzero(routing.experts == expert)
        made = _gated(products, names_of(expert), given[tokens])
        return tokens, made * routing.weights[tokens, places, None].astype(np.float32)

    chosen = np.unique(routing.experts).tolist()
    for start in range(0, len(chosen), _EXPERTS_AT_ONCE):
        some = chosen[start : start + _EXPERTS_AT_ONCE]
        for tokens, made in products.each([name for expert in some for name in names_of(expert)], weighted, some):
            total[tokens] += made
    return mx.array(total)


def _gated(products: Products, names: tuple[str, str, str], rows: Array) -> Array:
    gate, up, down = names
    if not on_cpu():
        x = mx.array(rows)
        opened = products.times(gate, x)
        return as_numpy(products.times(down, opened * mx.sigmoid(opened) * products.times(up, x)))
    with quietly():
        opened_rows = products.times_alone(gate, rows)
        inner = opened_rows / (1 + np.exp(-opened_rows)) * products.times_alone(up, rows)
        return products.times_alone(down, inner)
