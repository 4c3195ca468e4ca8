"""Looks at what the matrices of one transformer block are given, and at how much hangs on what they make of it.

An error in a matrix's product for one token changes the model's answers as much as the gradient there is long: for
most tokens hardly at all. Nine tenths of all that matters to most matrices matter for a tenth of the tokens
(docs/lab.md). So inputs are weighed by the length of that gradient. Its square would be the second derivative of the
divergence (GuidedQuant, arXiv:2505.07004), but leaves little of a text: what is measured is then that of few tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from r1mac.convert.input_statistics import InputStatistics, Tally
from r1mac.mlx_lm_api import MultiLinear, SwitchLinear

# Of stacked matrices, those whose channels mean something else in each slice.
_APART = ("switch_mlp.down_proj", "self_attn.embed_q")


def has_slices_apart(path: str) -> bool:
    """Tell whether each slice of the matrix at *path* has input channels of its own."""
    return path.endswith(_APART)


class Recorder:
    """Tallies of the inputs of a block's matrices, filled while a gradient is carried back through the block."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}

    @property
    def arrays(self) -> list[mx.array]:
        """What has to be computed before the activations can be let go."""
        return [array for tally in self._tallies.values() for array in tally.arrays]

    def statistics(self) -> Mapping[str, InputStatistics]:
        """Return what was seen, by the path of each matrix."""
        return {path: tally.statistics() for path, tally in self._tallies.items()}

    @contextmanager
    def watching(self, block: nn.Module, prefix: str) -> Iterator[None]:
        """Look at the products of *block*'s matrices, whose paths begin with *prefix*."""
        matrices = {
            path: module
            for path, module in block.named_modules()
            if isinstance(module, (nn.Linear, SwitchLinear, MultiLinear))
        }
        watched = [(path, _Watched(module, f"{prefix}.{path}", self)) for path, module in matrices.items()]
        block.update_modules(tree_unflatten(watched))
        try:
            yield
        finally:
            block.update_modules(tree_unflatten(list(matrices.items())))

    def take(self, path: str, x: mx.array, gradient: mx.array) -> None:
        """Count the input *x* ``[..., columns]`` of the matrix *path*, whose product has *gradient* ``[..., rows]``."""
        tally = self._tally(path, x.shape[-1])
        tally.add(x.reshape(-1, x.shape[-1]), _lengths(gradient).reshape(-1))

    def take_experts(self, path: str, x: mx.array, gradient: mx.array, experts: mx.array, count: int) -> None:
        """Count the input of a stack of *count* experts; *experts* says who gets which row."""
        rows = mx.broadcast_to(x, (*experts.shape, *x.shape[-2:])).reshape(-1, x.shape[-1])
        tally = self._tally(path, x.shape[-1], slices=count)
        tally.add_chosen(rows, _lengths(gradient).reshape(-1), experts.reshape(-1))

    def take_heads(self, path: str, rows: mx.array, weighed: mx.array) -> None:
        """Count *rows* ``[1, heads, tokens, columns]`` for a matrix with a slice for each head.

        Args:
            path: of the matrix.
            rows: of each head, or one for all.
            weighed: ``[1, heads, tokens, rows]``, or one for all: how long these are is what the rows weigh.
        """
        heads = max(rows.shape[1], weighed.shape[1])
        tally = self._tally(path, rows.shape[-1], slices=heads)
        weights = mx.broadcast_to(_lengths(weighed)[0], (heads, rows.shape[2]))
        tally.add_slices(mx.broadcast_to(rows[0], (heads, *rows.shape[2:])), weights)

    def _tally(self, path: str, columns: int, *, slices: int = 1) -> Tally:
        if path not in self._tallies:
            self._tallies[path] = Tally(columns, slices=slices, apart=has_slices_apart(path))
        return self._tallies[path]


class _Watched(nn.Module):  # type: ignore[misc]
    """Stands in for a matrix."""

    def __init__(self, inner: nn.Module, path: str, recorder: Recorder) -> None:
        super().__init__()
        # Not as attributes that MLX takes for parameters and submodules.
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_path", path)
        object.__setattr__(self, "_recorder", recorder)

    def __call__(self, x: mx.array, *arguments: Any, **options: Any) -> mx.array:
        inner, path, recorder = self._inner, self._path, self._recorder
        product: mx.array = inner(x, *arguments, **options)

        def take(gradient: mx.array) -> None:
            if isinstance(inner, SwitchLinear):
                recorder.take_experts(path, x, gradient, arguments[0], inner.num_experts)
            elif not isinstance(inner, MultiLinear):
                recorder.take(path, x, gradient)
            elif options.get("transpose", True):
                recorder.take_heads(path, x, gradient)
            else:
                # MLA's ``embed_q`` meets queries when one token is decoded, and the latent in a prefill, which
                # multiplies from its other side. A row of codes runs along the queries: those, as far as answers hang
                # on them, are the gradient of the keys that it makes.
                recorder.take_heads(path, gradient, x)

        return _passed_on(product, take)


def _passed_on(product: mx.array, take: Callable[[mx.array], None]) -> mx.array:
    """Return *product*; when a gradient is carried back through it, *take* gets it."""

    @mx.custom_function
    def same(values: mx.array) -> mx.array:
        return values

    @same.vjp
    def same_vjp(_: mx.array, gradient: mx.array, __: mx.array) -> mx.array:
        take(gradient)
        return gradient

    return same(product)  # type: ignore[return-value]


def _lengths(vectors: mx.array) -> mx.array:
    """Return how long *vectors* ``[..., columns]`` are, float32 ``[...]``."""
    vectors = vectors.astype(mx.float32)
    return mx.sqrt(mx.sum(vectors * vectors, axis=-1))
