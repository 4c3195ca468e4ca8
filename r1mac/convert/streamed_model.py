"""A model of which one block is in memory at a time: its weights are read from a source when they are computed with."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod

import mlx.core as mx
import numpy as np
from mlx import nn

from r1mac import mlx_lm_api
from r1mac.convert.blocks import DEFAULT_BLOCK_BYTES, piece_blocks
from r1mac.convert.device import on_cpu
from r1mac.convert.layout import OutputTensor, plan_layout
from r1mac.convert.recipe import plain
from r1mac.convert.sources import Source
from r1mac.errors import BadCheckpoint

EMBEDDING_PATH = "model.embed_tokens"


class StreamedModel:
    """The model of *source*, computed block by block: in float32 on a CPU, in the source's own type on a GPU.

    Raises:
        BadCheckpoint: the source's tensors do not make the model that its config.json describes.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        layout = plan_layout(source, plain(bits=16))
        self.tensors = {tensor.name: tensor for tensor in layout.tensors if not tensor.is_prediction}
        self._on_cpu = on_cpu()
        try:
            self._model = mlx_lm_api.model_skeleton(source.config)
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            raise BadCheckpoint(
                f"the config.json of {source.description} makes no model: {error}",
                hint="fetch or copy config.json again",
            ) from error
        self.block_count = len(self._model.layers)

    @property
    def block_bytes(self) -> int:
        """What the weights of the largest block take, with the largest matrix once more while it is put together."""
        sizes: dict[str, list[int]] = defaultdict(list)
        for name, tensor in self.tensors.items():
            value_bytes = 4 if self._on_cpu else tensor.dtype.size
            sizes[".".join(name.split(".")[:3])].append(value_bytes * prod(tensor.shape))
        blocks = [own for prefix, own in sizes.items() if prefix.startswith("model.layers.")]
        return max(sum(own) + max(own) for own in blocks)

    @property
    def head_path(self) -> str:
        """The matrix that makes logits of the last hidden states."""
        return "lm_head" if "lm_head.weight" in self.tensors else EMBEDDING_PATH

    def embedded(
        self, sequences: Sequence[Sequence[int]], changed: Callable[[mx.array], mx.array] | None = None
    ) -> mx.array:
        """Return hidden states ``[sequences, tokens, hidden]``, float32; of the embedding only their rows are kept.

        Args:
            sequences: token ids of one length.
            changed: makes of these rows what is used in their place.
        """
        numbers = np.array(sequences, np.int32)
        ids, places = np.unique(numbers, return_inverse=True)
        found = []
        for first_row, rows in self.row_blocks(EMBEDDING_PATH):
            mine = ids[(ids >= first_row) & (ids < first_row + rows.shape[0])] - first_row
            found.append(rows[mx.array(mine)].astype(mx.float32))
            mx.eval(found[-1])
        values = mx.concatenate(found)
        values = values if changed is None else changed(values)
        states = values[mx.array(places.reshape(numbers.shape))]
        mx.eval(states)
        return states

    @contextmanager
    def block(self, number: int) -> Iterator[nn.Module]:
        """Hold the weights of one block in memory."""
        block = self._model.layers[number]
        # Never computed, a skeleton's own weights take no memory.
        skeleton = block.parameters()
        self._fill(block, f"model.layers.{number}")
        try:
            yield block
        finally:
            block.update(skeleton)
            mx.clear_cache()

    def through(self, block: nn.Module, state: mx.array) -> mx.array:
        """Return the hidden states ``[tokens, hidden]`` behind *block*, float32, not computed yet."""
        given = state[None].astype(block.input_layernorm.weight.dtype)
        causal = mx.tril(mx.ones((state.shape[0], state.shape[0]), dtype=mx.bool_))
        result: mx.array = block(given, causal, None)[0]
        return result.astype(mx.float32)

    def normed(self, states: mx.array) -> mx.array:
        """Return what the head is given of the last block's hidden states."""
        norm = self._model.model.norm
        self._fill(norm, "model.norm")
        result: mx.array = norm(states)
        return result

    def row_blocks(self, path: str) -> Iterator[tuple[int, mx.array]]:
        """Yield the rows of the matrix at *path* in order, with the number of the first of each block."""
        for block in piece_blocks(self._source, self.tensors[f"{path}.weight"], 0, block_bytes=DEFAULT_BLOCK_BYTES):
            yield block.first_row, block.values

    def _fill(self, module: nn.Module, prefix: str) -> None:
        weights = [
            (name.removeprefix(f"{prefix}."), self._values(tensor))
            for name, tensor in self.tensors.items()
            if name.startswith(f"{prefix}.")
        ]
        try:
            module.load_weights(weights, strict=True)
        except ValueError as error:
            raise BadCheckpoint(
                f"{self._source.description} does not make the model of its config.json: {error}",
                hint="config.json and the weights are not of the same model",
            ) from error

    def _values(self, tensor: OutputTensor) -> mx.array:
        dtype = mx.float32 if self._on_cpu else tensor.dtype
        parts = []
        for number in range(len(tensor.sourcing.names)):
            for block in piece_blocks(self._source, tensor, number, block_bytes=DEFAULT_BLOCK_BYTES):
                parts.append(block.values.astype(dtype).reshape(-1, *tensor.shape[1:][-1:]))
                mx.eval(parts[-1])
        return mx.concatenate(parts).reshape(tensor.shape)
