"""Whether an adapter is one for this model: every tensor has its place, its shape, and numbers in it."""

from collections.abc import Mapping

import mlx.core as mx

from r1mac.convert.adapter_files import Adapter
from r1mac.convert.stored import whole
from r1mac.errors import BadCheckpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

Shapes = Mapping[str, tuple[int, ...]]


def merged_shapes(adapter: Adapter, base: str, shapes: Shapes, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the merged model by name.

    Args:
        adapter: what is merged.
        base: name of the base, for messages.
        shapes: the base's, with a head of its own where the merge gives it one.
        tied: whether the merged model's head is its embedding.

    Raises:
        BadCheckpoint: a tensor of the adapter has no place in the base, or another shape than its place.
    """
    merged = dict(shapes)
    for name, tensor in adapter.replacements.items():
        if name not in merged:
            raise _unknown(adapter, base, name)
        # Tokens may have been added; all else is as large as in the base.
        resizes = name in {EMBEDDING, HEAD} and tensor.shape[1:] == merged[name][1:]
        if tensor.shape != merged[name] and not resizes:
            raise _misfit(adapter, base, tensor.name, tensor.shape, name, merged[name])
        merged[name] = tensor.shape
    rows = merged.get(EMBEDDING, (0,))[0]
    if HEAD in merged and merged[HEAD][0] != rows and not tied:
        raise BadCheckpoint(
            f"with the adapter {EMBEDDING} has {rows} rows and {HEAD} has {merged[HEAD][0]}",
            hint="save the adapter again with save_embedding_layers=True",
        )
    _check_changes(adapter, base, merged)
    return merged


def unchanged_matrices(adapter: Adapter) -> frozenset[str]:
    """Return the names of the matrices that the adapter names and does not change, having read its numbers once.

    Raises:
        BadCheckpoint: a number is not finite.
    """
    unchanged = set()
    for name, change in adapter.changes.items():
        for part in change.parts:
            if not mx.all(mx.isfinite(whole(part))).item():
                raise BadCheckpoint(
                    f"{part.name} in {part.path} holds values that are not finite",
                    hint="the adapter's training failed; use an earlier checkpoint of it",
                )
        is_zero = change.scale == 0 or any(not mx.any(whole(half)).item() for half in (change.a, change.b))
        if is_zero and change.magnitude is None and change.bias is None:
            unchanged.add(name)
    return frozenset(unchanged)


def trained_on(adapter: Adapter) -> str:
    """Return a hint to which model an adapter belongs."""
    return f"the adapter was trained on {adapter.base}" if adapter.base else "it is for another model"


def _check_changes(adapter: Adapter, base: str, shapes: Shapes) -> None:
    for name, change in adapter.changes.items():
        shape = shapes.get(name)
        if shape is None:
            raise _unknown(adapter, base, name)
        if change.shape != shape or change.rank != change.b.shape[0 if change.b_transposed else -1]:
            raise _misfit(adapter, base, f"{change.b.name} x {change.a.name}", change.shape, name, shape)
        if change.magnitude is not None and change.magnitude.shape != shape[:1]:
            raise _misfit(adapter, base, change.magnitude.name, change.magnitude.shape, name, shape)
        bias_name = name.removesuffix(".weight") + ".bias"
        if change.bias is not None and shapes.get(bias_name) != change.bias.shape:
            raise _unknown(adapter, base, bias_name)


def _unknown(adapter: Adapter, base: str, name: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"the adapter in {adapter.folder} changes {name}, which {base} does not have", hint=trained_on(adapter)
    )


def _misfit(
    adapter: Adapter, base: str, part: str, shape: tuple[int, ...], name: str, expected: tuple[int, ...]
) -> BadCheckpoint:
    return BadCheckpoint(
        f"{part} of the adapter makes {list(shape)}, and {name} of {base} is {list(expected)}",
        hint=trained_on(adapter),
    )
