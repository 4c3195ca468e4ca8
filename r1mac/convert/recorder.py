"""Looks at what the matrices of one transformer block are given while it computes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from r1mac.convert.input_statistics import InputStatistics, Tally
from r1mac.mlx_lm_api import MultiLinear, SwitchLinear

_QUERY_PROJECTIONS = ("q_b_proj", "q_proj")


class Recorder:
    """Tallies of the inputs of a block's matrices; matrices that are given the same array share one.

    Args:
        correlates: whether plain matrices' channels are multiplied with each other.
    """

    def __init__(self, *, correlates: bool = True) -> None:
        self._correlates = correlates
        self._tallies: dict[str, Tally] = {}
        self.owners: dict[str, str] = {}
        self._seen: list[tuple[Any, Any, str]] = []

    @property
    def arrays(self) -> list[mx.array]:
        """What has to be computed before the activations can be let go."""
        return [array for tally in self._tallies.values() for array in tally.arrays]

    def statistics(self) -> Mapping[str, InputStatistics]:
        """Return what was seen, by the path of the first matrix of each input."""
        return {path: tally.statistics() for path, tally in self._tallies.items()}

    def forget_arrays(self) -> None:
        """Begin with new activations."""
        self._seen.clear()

    @contextmanager
    def watching(self, block: nn.Module, prefix: str) -> Iterator[None]:
        """Look at the inputs of *block*'s matrices, whose paths begin with *prefix*."""
        matrices = {
            path: module
            for path, module in block.named_modules()
            if isinstance(module, (nn.Linear, SwitchLinear, MultiLinear))
        }
        watched = {path: _Watched(module, f"{prefix}.{path}", self) for path, module in matrices.items()}
        for path, module in matrices.items():
            if isinstance(module, MultiLinear) and path.endswith("embed_q"):
                parent = path.rpartition(".")[0]
                query = next(f"{parent}.{name}" for name in _QUERY_PROJECTIONS if f"{parent}.{name}" in watched)
                watched[query].look_at_output(f"{prefix}.{path}", module.weight.shape[0], module.weight.shape[2])
        block.update_modules(tree_unflatten(list(watched.items())))
        try:
            yield
        finally:
            block.update_modules(tree_unflatten(list(matrices.items())))

    def take(self, path: str, x: mx.array, experts: mx.array | None, slices: int) -> None:
        """Count the input *x* ``[..., columns]`` of the matrix *path*; *experts* says who gets which row."""
        for seen, seen_experts, owner in self._seen:
            if seen is x and seen_experts is experts:
                self.owners[path] = owner
                return
        self._seen.append((x, experts, path))
        tally = self._tally(path, x.shape[-1], slices, correlates=self._correlates)
        if experts is None:
            tally.add(x.reshape(-1, x.shape[-1]))
            return
        rows = mx.broadcast_to(x, (*experts.shape, *x.shape[-2:]))
        tally.add(rows.reshape(-1, x.shape[-1]), experts.reshape(-1))

    def take_heads(self, path: str, rows: mx.array) -> None:
        """Count *rows* ``[tokens, heads, columns]`` for the matrix *path*, which has a slice for each head."""
        self._tally(path, rows.shape[2], rows.shape[1], correlates=False).add_heads(rows)

    def _tally(self, path: str, columns: int, slices: int, *, correlates: bool) -> Tally:
        if path not in self._tallies:
            self._tallies[path] = Tally(columns, slices=slices, correlates=correlates)
            self.owners[path] = path
        return self._tallies[path]


class _Watched(nn.Module):  # type: ignore[misc]
    """Stands in for a matrix."""

    def __init__(self, inner: nn.Module, path: str, recorder: Recorder) -> None:
        super().__init__()
        # Not as attributes that MLX takes for parameters and submodules.
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_path", path)
        object.__setattr__(self, "_recorder", recorder)
        object.__setattr__(self, "_output", None)

    def look_at_output(self, path: str, heads: int, columns: int) -> None:
        """Count the first *columns* of what each head is given, as the input of the matrix *path*.

        MLA's ``embed_q`` meets queries when one token is decoded, and keys in a prefill, which multiplies from its
        other side; a row of codes runs along the queries.
        """
        object.__setattr__(self, "_output", (path, heads, columns))

    def __call__(self, x: mx.array, *arguments: Any, **options: Any) -> mx.array:
        inner, recorder = self._inner, self._recorder
        if isinstance(inner, SwitchLinear):
            recorder.take(self._path, x, arguments[0], inner.num_experts)
        elif options.get("transpose", True):
            recorder.take(self._path, x, None, 1)
        result: mx.array = inner(x, *arguments, **options)
        if self._output is not None:
            path, heads, columns = self._output
            recorder.take_heads(path, result.reshape(-1, heads, result.shape[-1] // heads)[..., :columns])
        return result
