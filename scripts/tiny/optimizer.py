"""How weights move: matrices by Muon, everything else by Adam.

Muon (Keller Jordan, 2024) takes the momentum's nearest orthogonal matrix, found by five steps of Newton and Schulz.
Of a small model it needs a fraction of Adam's steps.
"""

from collections.abc import Mapping

import numpy as np

from scripts.tiny.tape import Array, Value

_MOMENTUM = 0.95
_BETAS = 0.9, 0.98
_EPS = 1e-8
_SERIES = 3.4445, -4.7750, 2.0315


class Optimizer:
    """Moves *weights*, whose gradients it takes and clears.

    Args:
        weights: by name.
        muon_rate: of matrices between states.
        adam_rate: of the embedding, the head, routers and norms.
        decay: share of a matrix that is lost at a rate of 1.
        most_norm: longer gradients are shortened to that.
    """

    def __init__(
        self,
        weights: Mapping[str, Value],
        *,
        muon_rate: float = 0.02,
        adam_rate: float = 0.004,
        decay: float = 0.05,
        most_norm: float = 1.0,
    ) -> None:
        self._weights = weights
        self._muon_rate, self._adam_rate, self._decay, self._most_norm = muon_rate, adam_rate, decay, most_norm
        self.steps = 0
        self.memory = {name: np.zeros_like(value.data) for name, value in weights.items()}
        others = (name for name, value in weights.items() if not _is_matrix(name, value))
        self.squares = {name: np.zeros_like(weights[name].data) for name in others}

    def step(self, rate: float) -> float:
        """Move every weight by *rate* times its own rate, and return the length of the gradient."""
        self.steps += 1
        grads = {name: value.grad for name, value in self._weights.items() if value.grad is not None}
        norm = float(np.sqrt(sum(float(np.vdot(grad, grad)) for grad in grads.values())))
        shorten = min(1.0, self._most_norm / max(norm, _EPS))
        for name, grad in grads.items():
            value = self._weights[name]
            if name in self.squares:
                self._adam(name, value.data, grad * shorten, rate * self._adam_rate)
            else:
                self._muon(name, value.data, grad * shorten, rate * self._muon_rate)
            value.grad = None
        return norm

    def _adam(self, name: str, data: Array, grad: Array, rate: float) -> None:
        first, second = self.memory[name], self.squares[name]
        first += (1 - _BETAS[0]) * (grad - first)
        second += (1 - _BETAS[1]) * (grad * grad - second)
        corrected = first / (1 - _BETAS[0] ** self.steps)
        data -= rate * corrected / (np.sqrt(second / (1 - _BETAS[1] ** self.steps)) + _EPS)

    def _muon(self, name: str, data: Array, grad: Array, rate: float) -> None:
        momentum = self.memory[name]
        momentum *= _MOMENTUM
        momentum += grad
        rows, columns = data.shape[-2:]
        data *= 1 - rate * self._decay
        data -= rate * max(1.0, rows / columns) ** 0.5 * orthogonal(grad + _MOMENTUM * momentum)


def orthogonal(matrices: Array) -> Array:
    """Return about the nearest orthogonal matrix of each, ``[..., rows, columns]``."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.swapaxes(-1, -2) if is_tall else matrices
    x = x / (np.sqrt(np.einsum("...rc,...rc->...", x, x))[..., None, None] + 1e-7)
    a, b, c = _SERIES
    for _ in range(5):
        products = x @ x.swapaxes(-1, -2)
        x = a * x + (b * products + c * (products @ products)) @ x
    found: Array = x.swapaxes(-1, -2) if is_tall else x
    return found


def _is_matrix(name: str, value: Value) -> bool:
    return value.data.ndim > 1 and not name.endswith(("embed_tokens.weight", "lm_head.weight", "gate.weight"))
