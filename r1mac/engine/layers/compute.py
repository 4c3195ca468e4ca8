"""Turns a loaded model's weights into the type that it computes in."""

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from mlx import nn

from r1mac import mlx_lm_api
from r1mac.plan.compute import Compute


def on_gpu() -> bool:
    """Whether MLX computes on a GPU here."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def prepare_weights(model: nn.Module, compute: Compute) -> Iterator[tuple[int, int]]:
    """Read a lazily loaded model's weights into memory, in the type *compute* says, a layer at a time.

    One evaluation of everything would be a single command buffer, which Metal's watchdog stops on models of
    some hundred gigabytes. Yields the layers done and their number.
    """
    layers = list(model.layers)
    for index, layer in enumerate(layers):
        _prepare(layer, compute)
        yield index + 1, len(layers)
    _prepare(model, compute)
    mx.clear_cache()


def _prepare(module: nn.Module, compute: Compute) -> None:
    if compute is Compute.DEQUANTIZED:
        replacements = [
            (path, _dequantized(leaf)) for path, leaf in module.named_modules() if type(leaf) in _TWINS and path
        ]
        if replacements:
            from mlx.utils import tree_unflatten

            module.update_modules(tree_unflatten(replacements))
    if compute is not Compute.AS_STORED:
        module.set_dtype(mx.float32)
    if compute is Compute.DEQUANTIZED:
        for _, leaf in module.named_modules():
            if type(leaf) in {nn.Linear, nn.Embedding, mlx_lm_api.SwitchLinear}:
                leaf.weight = _column_major(leaf.weight)
    mx.eval(module.parameters())


def _column_major(weight: mx.array) -> mx.array:
    """Return *weight* ``[..., out, in]`` as a view of its transpose, which products with its transpose read in order.

    A product with one row, which is what decoding is, and on a CPU each token's with its experts, takes BLAS 1.15 to
    1.5 times less time that way, and the reference BLAS of MLX's own wheel half (docs/lab.md).
    """
    transposed = mx.contiguous(weight.swapaxes(-1, -2))
    mx.eval(transposed)
    return transposed.swapaxes(-1, -2)


def _dequantized(module: Any) -> nn.Module:
    """Return the unquantised twin of a module, its weights in float32.

    Affine scales and biases go to float32 first: in their own type the products would be rounded once more.
    The floating-point modes have scales that are codes themselves, and no biases.
    """
    scales, biases = module.scales, module.get("biases")
    if module.mode == "affine":
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    weight = mx.dequantize(
        module.weight, scales, biases, group_size=module.group_size, bits=module.bits, mode=module.mode
    ).astype(mx.float32)
    mx.eval(weight)
    twin = _TWINS[type(module)](weight.shape[0])
    twin.weight = weight
    if "bias" in module:
        twin.bias = module.bias
    return twin


# Each twin is built at a size of one and given its weight afterwards, so that no random matrix is made.
_TWINS: dict[type, Callable[[int], nn.Module]] = {
    nn.QuantizedLinear: lambda _stack: nn.Linear(1, 1, bias=False),
    nn.QuantizedEmbedding: lambda _stack: nn.Embedding(1, 1),
    mlx_lm_api.QuantizedSwitchLinear: lambda stack: mlx_lm_api.SwitchLinear(1, 1, stack, bias=False),
    mlx_lm_api.QuantizedMultiLinear: lambda stack: mlx_lm_api.MultiLinear(1, 1, stack),
}
