"""The tensors that a conversion will write, known before any weight is read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import mlx.core as mx

from r1mac.catalog.arch import SUPPORTED_MODEL_TYPES, ArchSpec, TensorShape, parse_arch, prediction_tensors
from r1mac.convert.abilities import value_type
from r1mac.convert.names import Sourcing, is_behind_last_layer, prediction_layers, sourcing_of, unused_names
from r1mac.convert.recipe import Recipe, check_recipe
from r1mac.convert.sources import Source
from r1mac.errors import BadCheckpoint, BadRecipe
from r1mac.formats.safetensors import TensorLayout
from r1mac.plan.memory import Quantization
from r1mac.plan.recipe import WIDE_BITS

_STORED_TYPES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32"}


class Piece(NamedTuple):
    """What one tensor of the source makes of one tensor of the MLX model: all of it, or one expert of a stack.

    Attributes:
        tensor: name in the MLX model.
        number: place in ``sourcing.names``.
    """

    tensor: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTensor:
    """One tensor of the MLX model: its values, and whether they are quantised on the way.

    Attributes:
        is_prediction: it is of a layer that predicts further tokens, and is no part of the model that others load.
    """

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    quantization: Quantization | None
    sourcing: Sourcing
    is_prediction: bool = False

    def pieces(self) -> tuple[Piece, ...]:
        """Return what it is made of, in order."""
        return tuple(Piece(self.name, number) for number in range(len(self.sourcing.names)))

    def stored(self) -> Iterator[TensorLayout]:
        """Yield the tensors as they are written: one, or codes, scales and biases."""
        stored_type = _STORED_TYPES[self.dtype]
        if self.quantization is None:
            yield TensorLayout(self.name, stored_type, self.shape)
            return
        module, (*rows, columns) = self.name.removesuffix(".weight"), self.shape
        words = columns * self.quantization.bits // 32
        groups = columns // self.quantization.group_size
        yield TensorLayout(f"{module}.weight", "U32", (*rows, words))
        if self.quantization.mode != "affine":
            yield TensorLayout(f"{module}.scales", "U8", (*rows, groups))
            return
        yield TensorLayout(f"{module}.scales", stored_type, (*rows, groups))
        yield TensorLayout(f"{module}.biases", stored_type, (*rows, groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLayout:
    """All tensors of a converted model, in the model's own order.

    Attributes:
        unquantized_names: matrices that stay wide because the group size does not divide their rows.
        widths: what becomes of each matrix, by its path without ``.weight``.
    """

    tensors: tuple[OutputTensor, ...]
    unquantized_names: tuple[str, ...]
    widths: Mapping[str, Quantization | None]

    @property
    def parameter_count(self) -> int:
        """Values before quantisation, without those of prediction layers."""
        return sum(prod(tensor.shape) for tensor in self.tensors if not tensor.is_prediction)

    @property
    def output_bytes(self) -> int:
        """Bytes of all tensors as they are written."""
        return sum(tensor.size_bytes for tensor in self.stored())

    @property
    def prediction_bytes(self) -> int:
        """Bytes of those that are of prediction layers."""
        return sum(stored.size_bytes for tensor in self.tensors if tensor.is_prediction for stored in tensor.stored())

    def stored(self) -> list[TensorLayout]:
        """Return every tensor as it is written."""
        return [stored for tensor in self.tensors for stored in tensor.stored()]

    @property
    def prediction_names(self) -> frozenset[str]:
        """The written tensors of prediction layers, which go into files of their own."""
        return frozenset(stored.name for tensor in self.tensors if tensor.is_prediction for stored in tensor.stored())


def plan_layout(source: Source, recipe: Recipe) -> ModelLayout:
    """Match a source's tensors with those of the MLX model and decide what becomes of each.

    Raises:
        BadCheckpoint: the architecture is unknown, or a tensor is missing, too many or of the wrong shape.
        BadRecipe: the group size divides no matrix of the model.
    """
    arch = _arch_of(source)
    check_recipe(recipe, arch)
    available = source.shapes()
    expert_count = arch.experts.routed_count if arch.experts else 0
    behind = prediction_layers(available, layer_count=arch.layer_count) if arch.experts else ()
    predicting = tuple(shape for index in behind for shape in prediction_tensors(arch, index))
    shapes = (*model_order(arch), *predicting)
    sourcings = {shape.name: sourcing_of(shape.name, available, expert_count=expert_count) for shape in shapes}
    _check_names(source, sourcings, available)
    for shape in shapes:
        _check_shape(shape.name, shape.shape, sourcings[shape.name], available)
    return _lay_out(
        shapes,
        sourcings,
        recipe,
        lambda shape: _output_type(source, recipe, shape, sourcings[shape.name]),
        prediction_names=frozenset(shape.name for shape in predicting),
    )


def layout_on_paper(arch: ArchSpec, recipe: Recipe) -> ModelLayout:
    """Return the layout of a model of which there is no file: its source is bfloat16 or block FP8, as published.

    Raises:
        BadRecipe: it cannot be applied to this model.
    """
    check_recipe(recipe, arch)
    behind = range(arch.layer_count, arch.layer_count + arch.prediction_layer_count)
    predicting = tuple(shape for index in behind for shape in prediction_tensors(arch, index))
    shapes = (*model_order(arch), *predicting)
    sourcings = {shape.name: Sourcing("same", (shape.name,)) for shape in shapes}
    wide: mx.Dtype = getattr(mx, recipe.dtype or "bfloat16")
    return _lay_out(
        shapes,
        sourcings,
        recipe,
        lambda shape: mx.float32 if shape.role == "float32" else wide,
        prediction_names=frozenset(shape.name for shape in predicting),
    )


def model_order(arch: ArchSpec) -> tuple[TensorShape, ...]:
    """Return the MLX model's tensors from input to output, which is about the order of a checkpoint's files."""

    def place(shape: TensorShape) -> int:
        return 1 if shape.name.startswith("model.layers.") else 0 if shape.name == "model.embed_tokens.weight" else 2

    return tuple(sorted(arch.tensors, key=place))


def _lay_out(
    shapes: Iterable[TensorShape],
    sourcings: Mapping[str, Sourcing],
    recipe: Recipe,
    dtype_of: Callable[[TensorShape], mx.Dtype],
    *,
    prediction_names: frozenset[str] = frozenset(),
) -> ModelLayout:
    tensors, unquantized, widths = [], [], {}
    for name, shape, role, _ in shapes:
        width = recipe.quantization_for(name, shape) if role == "matrix" else None
        if role == "matrix":
            widths[name.removesuffix(".weight")] = width
            if width is None and recipe.width_of(name).bits < WIDE_BITS:
                unquantized.append(name)
        dtype = dtype_of(TensorShape(name, shape, role))
        tensors.append(
            OutputTensor(
                name=name,
                shape=shape,
                dtype=dtype,
                quantization=width,
                sourcing=sourcings[name],
                is_prediction=name in prediction_names,
            )
        )
    if recipe.quantizes and all(tensor.quantization is None for tensor in tensors):
        raise BadRecipe(
            f"no matrix of this model has rows that {recipe.default.group_size} divides",
            hint="use a smaller --group-size (64 or 32)",
        )
    return ModelLayout(tensors=tuple(tensors), unquantized_names=tuple(unquantized), widths=widths)


def _arch_of(source: Source) -> ArchSpec:
    model_type = source.config.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise BadCheckpoint(
            f"{source.description} is a {model_type!r} model, which r1mac does not convert",
            hint=f"r1mac converts {', '.join(SUPPORTED_MODEL_TYPES)}",
        )
    try:
        return parse_arch(source.config)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise BadCheckpoint(
            f"the config.json of {source.description} does not describe a {model_type} model: {error}",
            hint="fetch or copy config.json again",
        ) from error


def _output_type(source: Source, recipe: Recipe, shape: TensorShape, sourcing: Sourcing) -> mx.Dtype:
    """Return the type to store: the recipe's, else the source's; what must not be cast keeps its own."""
    wanted = recipe.dtype or source.default_dtype
    if shape.role != "float32" and wanted is not None:
        return getattr(mx, wanted)  # type: ignore[no-any-return]
    own: mx.Dtype = getattr(mx, value_type(source, sourcing.names[0]))
    return own if own in _STORED_TYPES else mx.float32


def _check_names(source: Source, sourcings: Mapping[str, Sourcing], available: Mapping[str, Any]) -> None:
    wanted = {name for sourcing in sourcings.values() for name in sourcing.names}
    unused = unused_names(
        list(available),
        layer_count=source.config["num_hidden_layers"],
        tied_embeddings="lm_head.weight" not in sourcings,
    )
    if missing := sorted(wanted - available.keys()):
        layer_count = source.config["num_hidden_layers"]
        behind = all(is_behind_last_layer(name, layer_count) for name in missing)
        raise BadCheckpoint(
            f"{source.description} lacks {len(missing)} of {len(wanted)} tensors, the first is {missing[0]}",
            hint="fetch or copy the checkpoint again" + (", or leave that layer out with --no-mtp" if behind else ""),
        )
    if extra := sorted(available.keys() - wanted - unused):
        raise BadCheckpoint(
            f"{source.description} has {len(extra)} tensors that a {source.config['model_type']} model does not, "
            f"the first is {extra[0]}",
            hint="is it a finetune with layers of its own? r1mac cannot convert those",
        )


def _check_shape(
    name: str, shape: tuple[int, ...], sourcing: Sourcing, available: Mapping[str, tuple[int, ...]]
) -> None:
    match sourcing.kind:
        case "same":
            expected = shape
        case "stack":
            expected = shape[1:]
        case "keys" | "values":
            # Keys and values of one head share a block of rows; each half is checked where both are known.
            found = available[sourcing.names[0]]
            heads, wanted_rank = shape[0], shape[1] if sourcing.kind == "keys" else shape[2]
            if len(found) == 2 and found[1] == wanted_rank and found[0] % heads == 0:  # noqa: PLR2004
                return
            expected = (found[0] if found else 0, wanted_rank)
    for source_name in sourcing.names:
        if available[source_name] != expected:
            raise BadCheckpoint(
                f"{source_name} is {list(available[source_name])} and config.json makes it {list(expected)} "
                f"(for {name})",
                hint="config.json and the weights are not of the same model",
            )
